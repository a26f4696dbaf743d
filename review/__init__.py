"""What a security review asks of the templates: `make review` (part of `make check`) runs it and lists what is acknowledged."""
