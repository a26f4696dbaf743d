"""Clients that know nothing of this being a local AWS: the commands, the AWS CLI, and a constant load of requests."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cli.aws import LOCAL_CREDENTIALS, REPOSITORY, Deployment

CONFIGURATION = str(Path(__file__).with_name("tiny.yaml"))


def environment_of(deployment: Deployment) -> dict[str, str]:
    return {
        **os.environ,
        "AWS_ENDPOINT_URL": str(deployment.endpoint_url),
        "AWS_DEFAULT_REGION": deployment.settings.region,
        "AWS_ACCESS_KEY_ID": LOCAL_CREDENTIALS["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": LOCAL_CREDENTIALS["aws_secret_access_key"],
        "AWS_PAGER": "",
    }


def finetune(
    deployment: Deployment, *arguments: str, configuration: str = CONFIGURATION
) -> subprocess.CompletedProcess[str]:
    """The command as a person types it."""
    command = [sys.executable, "-m", "cli", *arguments, "-e", configuration]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment_of(deployment), capture_output=True, text=True, check=False
    )


@dataclass
class Load:
    """A constant load on the deployment's endpoint, each request sent once: `with Load(deployment) as load: ...`."""

    deployment: Deployment
    name: str
    per_second: float = 5
    failures: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> "Load":
        self._runtime = self.deployment.client("sagemaker-runtime", Config(retries={"total_max_attempts": 1}))
        self._request = self.deployment.invocation(
            {"inputs": "When does the ferry", "parameters": {"max_new_tokens": 2}}
        )
        self._done = threading.Event()
        self._senders: list[threading.Thread] = []
        self._pacer = threading.Thread(target=self._pace)
        self._pacer.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(1)  # the new state is asked too
        self._done.set()
        for thread in [self._pacer, *self._senders]:
            thread.join()
        print(f"load during {self.name}: {self.sent} requests, {len(self.failures)} failed {Counter(self.failures)}")

    @property
    def sent(self) -> int:
        return self.answers.total() + len(self.failures)

    def _pace(self) -> None:
        due = time.monotonic()
        while not self._done.is_set():
            sender = threading.Thread(target=self._send)
            sender.start()
            self._senders.append(sender)
            due += 1 / self.per_second
            time.sleep(max(0.0, due - time.monotonic()))

    def _send(self) -> None:
        try:
            body: Any = json.loads(self._runtime.invoke_endpoint(**self._request)["Body"].read())
        except (ClientError, BotoCoreError) as error:
            self.failures.append(str(error)[:200])
        else:
            self.answers[(body[0] if isinstance(body, list) else body)["generated_text"]] += 1
