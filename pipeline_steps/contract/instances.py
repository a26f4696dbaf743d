"""What is to be known of instance types beside their price."""

import re

# Families with disks of their own, which their hardware encrypts: SageMaker refuses a KMS key of ours for them.
LOCAL_STORAGE = re.compile(r"ml\.(g4dn|g5|g6|g6e|gr6|p3dn|p4de?|p5(e|en)?|p6\S*|trn\d\w*|[cmrx]\d\w*d\w*)\.")


def has_local_storage(instance_type: str) -> bool:
    """Whether the volumes of an instance type are encrypted by its hardware, and by no key of the customer's."""
    return LOCAL_STORAGE.match(instance_type) is not None


def refused_volumes(instance_type: str, volume_key: bool) -> str | None:
    """What is wrong with training on a type for which the deployed request names a key (`volume_key`), or names none."""
    if has_local_storage(instance_type) is not volume_key:
        return None
    found, request = (
        ("has disks of its own, which take no KMS key", "names a key")
        if volume_key
        else ("has volumes that only a KMS key of yours encrypts as configured", "names none")
    )
    return (
        f"TrainingInstanceType is {instance_type!r}, which {found}, and the deployed request {request}: use a type of the "
        "deployed kind, or set training.instance_type to this one and deploy"
    )
