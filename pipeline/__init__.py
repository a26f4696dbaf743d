"""What runs and in which order: the pipelines as data, without CDK, AWS calls or torch."""
