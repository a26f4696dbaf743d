"""Names and tags of what serves: Deploy writes them, the stacks grant and watch them, the commands read them.

A release is a model package in a serving form. Its model and its endpoint configuration (for a component: its model)
carry one name made of all that they hold, so that the same release finds them again and another one never does.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

VARIANT = "AllTraffic"
PACKAGE_TAG = "model-package"  # ARN of the package that was seen to serve; written last
RELEASE_TAG = "release"  # name of its release
MODEL_DIGEST_TAG = "model-digest"  # of training.json
ERROR_ALARM = "5xx"
LATENCY_ALARM = "p95"
OWN_REQUEST = "asked-by-deploy"  # custom attribute of Deploy's requests: they are nobody's traffic


@dataclass(frozen=True)
class Serving:
    """What an endpoint's (or a component's) tags say: the last release that was seen to serve."""

    package: str
    release: str

    @classmethod
    def of(cls, tags: list[dict[str, str]]) -> "Serving | None":
        values = {tag["Key"]: tag["Value"] for tag in tags}
        if PACKAGE_TAG not in values or RELEASE_TAG not in values:
            return None
        return cls(values[PACKAGE_TAG], values[RELEASE_TAG])


def version(package_arn: str) -> int:
    """The version of a model package: arn:aws:sagemaker:...:model-package/GROUP/7 -> 7. Raises ValueError if it has none."""
    return int(package_arn.rsplit("/", 1)[-1])


def group(package_arn: str) -> str:
    """The group of a model package: arn:aws:sagemaker:...:model-package/GROUP/7 -> GROUP."""
    return package_arn.split(":model-package/", 1)[-1].rsplit("/", 1)[0]


def release_name(endpoint: str, package_arn: str, content: dict[str, Any]) -> str:
    """`<endpoint>-v<version>-<digest of content>`, at most 63 characters."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"{endpoint[:40]}-v{version(package_arn)}-{digest}"


def released_version(name: str) -> int:
    """The version in a name that `release_name` gave."""
    return int(name.rsplit("-", 2)[1].removeprefix("v"))


def is_release(name: str, endpoint: str) -> bool:
    """Whether `name` is one that `release_name` gives for this endpoint."""
    return re.fullmatch(rf"{re.escape(endpoint[:40])}-v\d+-[0-9a-f]{{8}}", name) is not None


def alarm_names(watched: str) -> list[str]:
    """Names of the alarms that take a release (or a component's update) back."""
    return [f"{watched}-{ERROR_ALARM}", f"{watched}-{LATENCY_ALARM}"]
