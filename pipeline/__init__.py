"""What runs and in which order: the pipelines as data, without CDK, AWS calls or torch."""

import os

# The SageMaker SDK builds a client in a class body when it is imported, and its role checks would call IAM. Both are set
# here because this runs before any module of the room imports the SDK. No request is ever made.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
