"""Local AWS with our stacks in it: start it, deploy to it with the real CDK CLI, take it down."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import local_aws
from cli.aws import ADDRESS_FILE, LOCAL_CREDENTIALS, LOCAL_STATE, REPOSITORY, local_address
from cli.console import CommandError, console
from config.settings import Settings

# Which installed environment plays which container image, by the image's repository name.
IMAGES = {
    "huggingface-pytorch-training": REPOSITORY / ".venv-steps",
    "djl-inference": REPOSITORY / ".venv-steps",
}
TIME_FACTOR = 60  # what AWS waits a minute for (a canary, an alarm's period) takes a second here
CDK = REPOSITORY / "node_modules" / ".bin" / "cdk"
NODE = REPOSITORY / ".venv" / "bin"


@contextmanager
def running(
    settings: Settings,
    state: Path = LOCAL_STATE,
    port: int = 0,
    keep: Path | None = None,
    neighbours: Path | None = None,
) -> Iterator[local_aws.LocalAws]:
    """Local AWS with its files in `state`; no process of it is left at the end.

    It is empty at the start, unless the folder `keep` holds what an earlier one has left there. With the folder
    `neighbours` it is the account and region of the settings, and knows those that others run with the same folder.
    """
    _refuse_if_running(state)
    os.environ["AWS_DEFAULT_REGION"] = settings.region
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    account, region = (settings.account, settings.region) if neighbours else (None, None)
    with local_aws.start(
        state, IMAGES, port, TIME_FACTOR, keep, account=account, region=region, neighbours=neighbours
    ) as aws:
        address = state / ADDRESS_FILE
        address.write_text(json.dumps({"url": aws.url}), encoding="utf-8")
        try:
            yield aws
        finally:
            address.unlink(missing_ok=True)


def _refuse_if_running(state: Path) -> None:
    if not (state / ADDRESS_FILE).exists():
        return
    url = local_address(state)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == 0:
            raise CommandError(
                f"local AWS runs already at {url} with {state}; stop it first with Ctrl-C in its terminal"
            )


def deploy(settings: Settings, url: str, log: Path, environment: str = "local") -> None:
    """`cdk bootstrap` and `cdk deploy --all` of `environment` against the AWS at `url`; what they say goes to `log`."""
    target = f"aws://{settings.account}/{settings.region}"
    # An output folder of its own: a deployment to AWS from this checkout may be under way at the same time.
    output = ["--output", str(log.with_name("cdk.out"))]
    _cdk(["bootstrap", target, *output], url, settings, log)
    options = ["--all", "--require-approval", "never", "--progress", "events", "-c", f"environment={environment}"]
    _cdk(["deploy", *options, *output], url, settings, log)


def _cdk(arguments: list[str], url: str, settings: Settings, log: Path) -> None:
    if not CDK.exists():
        raise CommandError(f"{CDK} is missing; run 'make setup'")
    environment = {
        **os.environ,
        "PATH": f"{NODE}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        # The CDK CLI remembers, beyond its end, which account a key is of.
        "AWS_ACCESS_KEY_ID": f"{LOCAL_CREDENTIALS['aws_access_key_id']}-{settings.account}",
        "AWS_SECRET_ACCESS_KEY": LOCAL_CREDENTIALS["aws_secret_access_key"],
    }
    with (
        console.status(f"cdk {arguments[0]} (log: {log})"),
        log.open("a", encoding="utf-8") as output,
        subprocess.Popen(
            [str(CDK), "--no-notices", "--ci", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        code = process.wait()
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-30:])
        raise CommandError(f"cdk {arguments[0]} ended with code {code}; the end of {log}:\n{tail}")
