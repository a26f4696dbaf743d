"""For every test: which of them this environment can run, and that none of them leaves anything behind."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import leaks

# Tests run side by side: a thread of torch that waits for another must not keep a processor busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The steps' tests need torch, so they run with the steps' own environment: `make test` runs both.
collect_ignore = [] if find_spec("torch") else ["pipeline_steps"]

LEFT = "left_behind"  # what the processes that run tests side by side have found of themselves
_found_by_workers: list[str] = []
_temporary: Path


def pytest_configure(config: pytest.Config) -> None:
    global _temporary
    if not hasattr(config, "workerinput"):  # one of several processes has the mark and the folder of the first
        _temporary = leaks.begin()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _found_by_workers.extend(getattr(node, "workeroutput", {}).get(LEFT, []))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run, loudly, if something of it is still there."""
    shared = sys.modules.get("tests.local_aws.sagemaker_server")
    if shared is not None and shared.running_server.cache_info().currsize:
        shared.running_server().stop()  # it would end with this process
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[LEFT] = list(leaks.ports(os.getpid()))
        return
    if left := [*_found_by_workers, *leaks.found(_temporary)]:
        print("\n" + "\n".join(["LEFT BEHIND by the tests:", *(f"  {line}" for line in left)]), file=sys.stderr)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
