"""Real requests to an endpoint: one at a time while traffic moves, and the recorded ones when it has moved."""

import difflib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from pipeline_steps.contract import releases
from pipeline_steps.contract.evaluation import GoldenRequest
from pipeline_steps.contract.progress import report
from pipeline_steps.release.job import Aws, ReleaseFailed

PLAIN_REQUEST = {"inputs": "Hello, my name is", "parameters": {"max_new_tokens": 8, "do_sample": False}}
SECONDS_BETWEEN = 0.5


@dataclass(frozen=True)
class Target:
    """What is asked: an endpoint, and the component on it if it has components."""

    endpoint: str
    component: str | None

    @property
    def parameters(self) -> dict[str, str]:
        component = {"InferenceComponentName": self.component} if self.component else {}
        return {"EndpointName": self.endpoint, **component}

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.component}" if self.component else self.endpoint


@dataclass(frozen=True)
class Agreement:
    """The endpoint's answers beside the recorded ones. `shares` is by request, in their order; `mean` is 1 without any."""

    shares: list[float]
    answers: list[str]

    @property
    def mean(self) -> float:
        return sum(self.shares) / len(self.shares) if self.shares else 1.0

    @property
    def identical(self) -> int:
        return self.shares.count(1.0)


def ask(aws: Aws, target: Target, request: dict[str, Any]) -> str:
    """The text that the endpoint answers. Raises ReleaseFailed if there is none."""
    try:
        answer = aws.runtime.invoke_endpoint(
            **target.parameters,
            ContentType="application/json",
            CustomAttributes=releases.OWN_REQUEST,
            Body=json.dumps(request),
        )
        body = answer["Body"].read().decode(errors="replace")
    except (ClientError, BotoCoreError) as error:
        raise ReleaseFailed(f"the endpoint {target} does not answer: {error}") from error
    try:
        content = json.loads(body)
        text = (content[0] if isinstance(content, list) else content)["generated_text"]
    except (ValueError, KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ReleaseFailed(f"the endpoint {target} answers without a generated_text: {body[:200]}")
    return text


def check_answers(aws: Aws, target: Target, golden: Sequence[GoldenRequest], least: float) -> Agreement:
    """Ask what Evaluate asked, and compare. Raises ReleaseFailed if the answers are not those of the same model.

    Serving computes in another order and precision than Evaluate, and one other token changes all that follow it, so
    greedy answers are alike and not always the same. The rule: in the mean over the requests, the share of words that
    both answers have in common in the same order is at least `least`.
    """
    ask(aws, target, PLAIN_REQUEST)
    answers = []
    for number, one in enumerate(golden, start=1):
        answers.append(ask(aws, target, {"inputs": one.inputs, "parameters": one.parameters}))
        report("recorded requests", number, len(golden))
    agreement = Agreement(
        [common_share(answer, one.generated_text) for answer, one in zip(answers, golden, strict=True)], answers
    )
    if agreement.mean < least:
        worst = min(range(len(golden)), key=agreement.shares.__getitem__)
        raise ReleaseFailed(
            f"the endpoint {target} does not answer as the evaluated model did: its answers share {agreement.mean:.2f} of the words "
            f"with those recorded, over {len(golden)} requests, and {least:g} is the least; for example {answers[worst][:120]!r} "
            f"where {golden[worst].generated_text[:120]!r} was recorded"
        )
    return agreement


def common_share(answer: str, recorded: str) -> float:
    """Words that both have in the same order, as a share of all words of both, 0..1; 1 if both are empty."""
    return difflib.SequenceMatcher(None, answer.split(), recorded.split(), autojunk=False).ratio()


class Visitor:
    """Asks the endpoint again and again while a release moves traffic, as a client would.

    A canary that nobody asks proves nothing; so the alarms have something to look at even at night.
    It stays away (`visits` is False) from an endpoint that has not served yet.
    """

    def __init__(self, aws: Aws, target: Target, golden: Sequence[GoldenRequest], *, visits: bool) -> None:
        self._aws = aws
        self._target = target
        self._requests = [{"inputs": one.inputs, "parameters": one.parameters} for one in golden] or [PLAIN_REQUEST]
        self._visits = visits
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="visitor", daemon=True)
        self.asked = 0
        self.failed = 0
        self.last_failure = ""

    def __enter__(self) -> "Visitor":
        if self._visits:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._visits:
            self._thread.join(timeout=75)  # a request takes 60 s at most

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            request = self._requests[self.asked % len(self._requests)]
            try:
                ask(self._aws, self._target, request)
            except ReleaseFailed as error:
                self.failed += 1
                self.last_failure = str(error)
            self.asked += 1
            self._stop.wait(SECONDS_BETWEEN)
