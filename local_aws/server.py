"""The server: moto's application on localhost, with our rooms installed in it, and an orderly end."""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qs

from local_aws import READY, service_faults
from local_aws.settings import Settings

ACCOUNT = "123456789012"
# moto finds the bucket of a path-style URL only when the host has this name; it also keeps others out.
HOST = "localhost"
PARENT_SECONDS = 0.5  # between two looks at whether who started us is alive

log = logging.getLogger(__name__)


def serve(
    root: Path,
    images: dict[str, Path],
    port: int,
    region: str,
    time_factor: float = 1.0,
    rules: Sequence[service_faults.Rule] = (),
    kept: Path | None = None,
    account: str = ACCOUNT,
    neighbours_folder: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; then every job and endpoint is gone before this returns.

    `rules` are faults of services, there from the start. `kept` is the folder with the state of an earlier server, if there
    is one, and of this one after its end. `neighbours_folder` is where servers of other accounts and regions are known.
    """
    parent = os.getppid()
    root.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("werkzeug", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Keys for our own clients, and for moto's: any do here, and real ones must never be picked up.
    os.environ.update(AWS_ACCESS_KEY_ID="local", AWS_SECRET_ACCESS_KEY="local", AWS_DEFAULT_REGION=region)
    os.environ["MOTO_ACCOUNT_ID"] = account  # whoever asks, and with whatever key, asks this account
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    from local_aws import (
        authorization,
        bedrock,
        cloudformation,
        copies,
        crossing,
        enforcement,
        events,
        identity,
        limits,
        metrics,
        neighbours,
        networks,
        runtime,
        sagemaker,
        scheduler,
        service_metrics,
        survival,
    )
    from local_aws.request_actions import Place

    moto = DomainDispatcherApplication(create_backend_app)
    try:
        server = make_server(HOST, port, moto, threaded=True)
    except SystemExit:  # werkzeug has told why
        raise SystemExit(
            f"error: port {port} on {HOST} cannot be used; choose another with --port, or 0 for a free one"
        ) from None
    url = f"http://{HOST}:{server.port}"
    # What jobs must not read: other jobs' files, this server's state, and what lies in the user's home, such as keys.
    hidden = (root, Path.home(), *(folder for folder in (kept, neighbours_folder) if folder))
    settings = Settings(root, images, server.port, region, account, url, time_factor, hidden, neighbours_folder)
    os.environ["MOTO_PORT"] = str(server.port)
    try:
        neighbours.install(settings)
    except neighbours.NeighbourError as error:
        raise SystemExit(f"error: {error}") from None
    authorization.install(settings)
    networks.install(settings)
    enforcement.install(settings)
    identity.install(settings)
    crossing.install(settings)
    copies.install()
    events.install(settings)
    cloudformation.install(settings)
    try:
        restored = survival.restore(kept, Place(region, account)) if kept else None
    except survival.SurvivalError as error:
        raise SystemExit(f"error: {error}") from None
    metrics.install()
    limits.install(settings)
    bedrock.install(settings)
    rooms = sagemaker.install(settings)
    if restored:
        restored(rooms)
    service_metrics.install(settings, rooms.endpoints)
    scheduler.install(settings)
    for rule in rules:
        service_faults.faults.add(rule)
    server.app = _for_this_machine(
        runtime.over(_with_controls(service_faults.faults.over(crossing.over(moto))), rooms.endpoints.router)
    )

    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    neighbours.announce()
    print(f"{READY}{settings.url}", flush=True)
    stopping.wait()
    scheduler.shutdown()
    sagemaker.shutdown()  # while the server still answers: a job that ends now may say so
    neighbours.withdraw()
    server.shutdown()
    if kept:
        survival.save(kept, Place(region, account), rooms)


def _for_this_machine(application: Any) -> Any:
    """The application, for requests that were meant for this machine.

    A web page can have its own name resolve to 127.0.0.1 and so make a browser talk to us (DNS rebinding); the Host
    header then still has the page's name. S3's clients put a bucket's name before ours.
    """

    def answer(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        host = str(environment.get("HTTP_HOST", HOST)).rsplit(":", 1)[0].lower()
        if host in (HOST, "127.0.0.1") or host.endswith(f".{HOST}"):
            return application(environment, start_response)  # type: ignore[no-any-return]
        text = f"the host {host!r} is not served here: local AWS answers to {HOST} and 127.0.0.1 only\n"
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [text.encode()]

    return answer


def _with_controls(application: Any) -> Any:
    """The application, and what AWS has no request for.

    POST /_local/clock?advance_seconds=N moves the scheduler's clock forward; POST /_local/interrupt?job=NAME reclaims
    the spot instances of a training job; POST /_local/faults?service=s3&error=SlowDown adds a rule of service_faults.py,
    and POST /_local/faults?clear=all removes every rule;
    POST /_local/authorizations lists, as JSON, every call that a policy allowed, with the statements that did.
    """
    from local_aws import authorization, sagemaker, scheduler
    from local_aws.sagemaker_api import ValidationException

    def advance_clock(query: dict[str, list[str]]) -> str:
        seconds = float(query["advance_seconds"][0])
        if not 0 <= seconds < 1e10:
            raise ValueError
        return scheduler.clock.advance(seconds).isoformat()

    def interrupt(query: dict[str, list[str]]) -> str:
        name = query["job"][0]
        sagemaker.interrupt(name)
        return f"the instances of {name} are being reclaimed"

    def fault(query: dict[str, list[str]]) -> str:
        if query == {"clear": ["all"]}:
            service_faults.faults.clear()
            return "there is no rule any more"
        rule = service_faults.Rule.of({name: values[-1] for name, values in query.items()})
        service_faults.faults.add(rule)
        return f"{rule}"

    def authorizations(query: dict[str, list[str]]) -> str:
        return json.dumps(authorization.records())

    controls = {
        "/_local/faults": (fault, "use POST /_local/faults?service=s3&error=SlowDown, or ?clear=all"),
        "/_local/authorizations": (authorizations, "use POST /_local/authorizations"),
        "/_local/clock": (advance_clock, "use POST /_local/clock?advance_seconds=N, N from 0"),
        "/_local/interrupt": (interrupt, "use POST /_local/interrupt?job=NAME, NAME of a training job"),
    }

    def answer(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environment["PATH_INFO"] not in controls:
            return application(environment, start_response)  # type: ignore[no-any-return]
        control, usage = controls[environment["PATH_INFO"]]
        status = "400 Bad Request"
        try:
            if environment["REQUEST_METHOD"] != "POST":
                raise ValueError
            text, status = control(parse_qs(environment.get("QUERY_STRING", ""))), "200 OK"
        except ValidationException as error:
            text = error.message
        except service_faults.FaultRuleError as error:
            text = str(error)
        except (KeyError, ValueError):
            text = usage
        start_response(status, [("Content-Type", "text/plain")])
        return [f"{text}\n".encode()]

    return answer


def _end_with(parent: int) -> None:
    """Send SIGTERM to this process when the one that started it is gone, however it ended.

    The kernel's PR_SET_PDEATHSIG would do so already when the thread that started us ends, its process alive or not.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
