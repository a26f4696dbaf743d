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

# These share one deployment, in this order: each goes on from what was trained and released before, and the last two
# change its configuration.
ON_ONE_DEPLOYMENT = (
    "test_product.py",
    "test_security.py",
    "test_unattended.py",
    "test_redeploy.py",
    "test_several_hosts.py",
)
# Then the other long ones, so that no process has one of them to do when the others are done.
LONG = ("test_release.py", "test_article.py", "test_serving_place.py", "test_production.py", "test_deploy_step.py")

LEFT = "left_behind"  # what the processes that run tests side by side have found of themselves
_found_by_workers: list[str] = []
_temporary: Path


def pytest_configure(config: pytest.Config) -> None:
    global _temporary
    if not hasattr(config, "workerinput"):  # one of several processes has the mark and the folder of the first
        _temporary = leaks.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate((*ON_ONE_DEPLOYMENT, *LONG))}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of the processes that run tests side by side one takes a whole file, or all files of one deployment."""
    from xdist.scheduler import LoadFileScheduling

    class ByDeployment(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "one deployment" if Path(file).name in ON_ONE_DEPLOYMENT else file

    config.option.loadscopereorder = False  # by the number of tests; a file with one test may be among the longest
    return ByDeployment(config, log)


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
