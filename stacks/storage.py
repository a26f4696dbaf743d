"""Buckets: raw data that people and systems upload, and artifacts that the pipeline makes."""

from aws_cdk import CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_s3 as s3
from constructs import Construct

from config.settings import Settings


class StorageStack(Stack):
    """Raw bucket (announces every new object to EventBridge) and artifact bucket."""

    def __init__(self, scope: Construct, id_: str, *, settings: Settings, **kwargs: object) -> None:
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]

        self.raw_bucket = self._bucket("RawBucket", keep=settings.keep_data)
        # The L2 switch for EventBridge brings a Lambda-backed custom resource; the property itself needs none.
        self.raw_bucket.node.default_child.add_property_override(  # type: ignore[union-attr]
            "NotificationConfiguration.EventBridgeConfiguration.EventBridgeEnabled", True
        )

        self.artifact_bucket = self._bucket("ArtifactBucket", keep=settings.keep_data)
        self.artifact_bucket.add_lifecycle_rule(
            id="OldVersionsAndUnfinishedUploads",
            noncurrent_version_expiration=Duration.days(30),
            abort_incomplete_multipart_upload_after=Duration.days(7),
        )
        self.artifact_bucket.add_lifecycle_rule(
            id="WhatAFailedPreparationLeftBehind",
            prefix="datasets/.exchange/",
            expiration=Duration.days(1),
        )
        self.artifact_bucket.add_lifecycle_rule(
            id="CheckpointsOfEndedTrainings",
            prefix="checkpoints/",
            expiration=Duration.days(30),  # longer than a training may take
        )

        if settings.monitoring.enabled:
            self.artifact_bucket.add_lifecycle_rule(
                id="CapturedTraffic", prefix="captured/", expiration=Duration.days(settings.monitoring.kept_days)
            )

        CfnOutput(self, "RawBucketName", value=self.raw_bucket.bucket_name)
        CfnOutput(self, "ArtifactBucketName", value=self.artifact_bucket.bucket_name)

    def _bucket(self, id_: str, *, keep: bool) -> s3.Bucket:
        return s3.Bucket(
            self,
            id_,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            versioned=True,
            removal_policy=RemovalPolicy.RETAIN if keep else RemovalPolicy.DESTROY,
        )
