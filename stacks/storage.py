"""Buckets: raw data that people and systems upload, artifacts that the pipeline makes, and the key of it all."""

from aws_cdk import ArnFormat, CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from config.settings import Settings
from stacks.components.other_accounts import open_to_places


class StorageStack(Stack):
    """Raw bucket (announces every new object to EventBridge), artifact bucket, their key and their access logs.

    A serving place has no raw bucket.
    """

    def __init__(self, scope: Construct, id_: str, *, settings: Settings, **kwargs: object) -> None:
        super().__init__(scope, id_, **kwargs)  # type: ignore[arg-type]

        self.key = self._key(settings)
        self.log_bucket = self._log_bucket(settings)
        if settings.trains:
            self.raw_bucket = self._raw_bucket(settings)
        self.artifact_bucket = self._bucket("ArtifactBucket", keep=settings.keep_data)
        self.artifact_bucket.add_lifecycle_rule(
            id="OldVersionsAndUnfinishedUploads",
            noncurrent_version_expiration=Duration.days(30),
            abort_incomplete_multipart_upload_after=Duration.days(7),
        )
        if settings.trains:
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
        if not settings.serves:
            open_to_places(self, self.artifact_bucket, self.key, settings)
        if settings.monitoring.enabled:
            self.artifact_bucket.add_lifecycle_rule(
                id="CapturedTraffic", prefix="captured/", expiration=Duration.days(settings.monitoring.kept_days)
            )

        if settings.trains:
            CfnOutput(self, "RawBucketName", value=self.raw_bucket.bucket_name)
        CfnOutput(self, "ArtifactBucketName", value=self.artifact_bucket.bucket_name)

    def _raw_bucket(self, settings: Settings) -> s3.Bucket:
        bucket = self._bucket("RawBucket", keep=settings.keep_data)
        # The L2 switch for EventBridge brings a Lambda-backed custom resource; the property itself needs none.
        bucket.node.default_child.add_property_override(  # type: ignore[union-attr]
            "NotificationConfiguration.EventBridgeConfiguration.EventBridgeEnabled", True
        )
        return bucket

    def _key(self, settings: Settings) -> kms.Key:
        """One key for all that this deployment stores: buckets, volumes, outputs, the topic and queues."""
        key = kms.Key(
            self,
            "Key",
            alias=f"alias/{settings.name}",
            description=f"Data of {settings.name}",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN if settings.keep_data else RemovalPolicy.DESTROY,
        )
        # They publish to the encrypted topic, what people are told of runs, alarms and the budget; what cannot be delivered
        # EventBridge puts into an encrypted queue.
        key.add_to_resource_policy(
            iam.PolicyStatement(
                sid="TellPeople",
                principals=[iam.ServicePrincipal(f"{service}.amazonaws.com") for service in ("budgets", "events")],
                actions=["kms:Decrypt", "kms:GenerateDataKey*"],
                resources=["*"],  # of a key's policy: this key
                conditions={"StringEquals": {"aws:SourceAccount": self.account}},
            )
        )
        if settings.network is not None and settings.network.is_created:
            key.add_to_resource_policy(
                iam.PolicyStatement(
                    sid="LogTraffic",
                    principals=[iam.ServicePrincipal(f"logs.{self.region}.amazonaws.com")],
                    actions=["kms:Decrypt", "kms:Describe*", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"],
                    resources=["*"],
                    conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": self._log_groups(settings)}},
                )
            )
        return key

    def _log_groups(self, settings: Settings) -> str:
        """ARN of the log groups of `<name>-network`, whose names CloudFormation makes."""
        return self.format_arn(
            service="logs",
            resource="log-group",
            resource_name=f"{settings.name}-network-*",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )

    def _log_bucket(self, settings: Settings) -> s3.Bucket:
        """Who asked for which object. S3 delivers access logs to buckets without a KMS key only."""
        bucket = s3.Bucket(
            self,
            "AccessLogs",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            versioned=True,
            removal_policy=RemovalPolicy.RETAIN if settings.keep_data else RemovalPolicy.DESTROY,
        )
        bucket.add_lifecycle_rule(
            id="AccessLogsOfAYear",
            expiration=Duration.days(365),
            noncurrent_version_expiration=Duration.days(30),
        )
        return bucket

    def _bucket(self, id_: str, *, keep: bool) -> s3.Bucket:
        return s3.Bucket(
            self,
            id_,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,  # a request to KMS for a bucket and hour, and not for each object
            enforce_ssl=True,
            minimum_tls_version=1.2,
            server_access_logs_bucket=self.log_bucket,
            server_access_logs_prefix=f"{id_}/",
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            versioned=True,
            removal_policy=RemovalPolicy.RETAIN if keep else RemovalPolicy.DESTROY,
        )
