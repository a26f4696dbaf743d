"""Least privilege, proven by running under it: local AWS enforces every policy, and each statement is needed by the run.

`make permissions` prints the table.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cli import comparisons, datasets, executions, permissions
from cli.aws import REPOSITORY, Deployment
from cli.permissions import Statement
from pipeline_steps.contract.comparison import Sampling
from tests.end_to_end.test_product import upload_and_follow

EXAMPLES = REPOSITORY / "examples"

# Statements that a good run of the tiny product cannot need, each with the reason why it stays.
NOT_NEEDED_HERE = {
    ("DeployRole", "RejectPackage"): "only a release that fails rejects its package (tests/end_to_end/test_release.py)",
    ("DeployRole", "AutoscalingRole"): "a release without autoscaling registers no target",
    ("DeployRole", "Autoscaling"): "a release without autoscaling only takes targets away",
    ("EventsRole", "trust"): "new data starts an execution only when somebody uploads some",
    ("ScheduleRole", "Start"): "the schedule fires on Mondays (tests/local_aws/test_scheduler.py fires schedules)",
    ("ScheduleRole", "trust"): "as above",
    ("Failures", "Alarms"): "no alarm rings in a good run (tests/local_aws/test_alarms.py)",
    ("Key", "0"): "the account's administration of its key; the roles' own statements rest on it",
}


@pytest.fixture(scope="module")
def exercised(deployment: Deployment) -> Deployment:
    """The deployment after a whole run: new data became a served model, and prompts were compared."""
    if not any(one["name"] == "Succeeded" for one in _executions(deployment)):
        view = upload_and_follow(deployment, EXAMPLES / "instruction", "instruction")
        assert view.status == "Succeeded", view.reason
    return deployment
