"""A stand-in for AWS's LMI image (DJL Serving with vLLM): the same HTTP interface, served by transformers on this machine.

`python3 -m local_aws.lmi` is run by the interpreter that plays the image: standard library, torch and transformers only.
"""
