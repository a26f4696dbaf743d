"""Every format that two steps share, with the one module that writes and reads it. Standard library at import."""
