"""For every test: which of them this environment can run, and that none of them leaves anything behind."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import leaks

# The steps' tests need torch, so they run with the steps' own environment: `make test` runs both.
collect_ignore = [] if find_spec("torch") else ["pipeline_steps"]

_temporary: Path


def pytest_configure() -> None:
    global _temporary
    _temporary = leaks.begin()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run, loudly, if something of it is still there."""
    shared = sys.modules.get("tests.local_aws.sagemaker_server")
    if shared is not None and shared.running_server.cache_info().currsize:
        shared.running_server().stop()  # it would end with this process
    if left := leaks.found(_temporary):
        print("\n" + "\n".join(["LEFT BEHIND by the tests:", *(f"  {line}" for line in left)]), file=sys.stderr)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
