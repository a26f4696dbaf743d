"""A queue for events that could not be delivered, so that none is lost in silence."""

from aws_cdk import Duration, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sqs as sqs
from constructs import Construct


class DeadLetters(sqs.Queue):
    """A queue that EventBridge's rules of this account may write to; it keeps a message as long as SQS can, 14 days."""

    def __init__(self, scope: Construct, id_: str, *, key: kms.IKey) -> None:
        """`key` encrypts it; its policy must let EventBridge use it."""
        super().__init__(
            scope,
            id_,
            encryption=sqs.QueueEncryption.KMS,
            encryption_master_key=key,
            enforce_ssl=True,
            retention_period=Duration.days(14),
        )
        self._key = key
        self.add_to_resource_policy(
            iam.PolicyStatement(
                actions=["sqs:SendMessage"],
                principals=[iam.ServicePrincipal("events.amazonaws.com")],
                resources=[self.queue_arn],
                conditions={"StringEquals": {"aws:SourceAccount": Stack.of(self).account}},
            )
        )

    def accept_from(self, role: iam.Role) -> None:
        """Let `role` write here too: EventBridge Scheduler does it with the role of the schedule."""
        role.add_to_policy(
            iam.PolicyStatement(sid="KeepUndelivered", actions=["sqs:SendMessage"], resources=[self.queue_arn])
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="KeepEncrypted", actions=["kms:Decrypt", "kms:GenerateDataKey"], resources=[self._key.key_arn]
            )
        )
