"""`finetune`: the command line, the same against AWS and against local AWS."""
