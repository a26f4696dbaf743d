"""Words that a job leaves for people: SageMaker shows them as the job's FailureReason or ExitMessage."""

import sys
from pathlib import Path

# A training job's failure file and a processing job's exit message; each service reads its own.
FAILURE_FILE = Path("/opt/ml/output/failure")
EXIT_MESSAGE_FILE = Path("/opt/ml/output/message")


def tell_failure(message: str) -> None:
    """Say why the step failed where people and the service look for it."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(FAILURE_FILE, message)
    _leave(EXIT_MESSAGE_FILE, message)


def tell_result(message: str) -> None:
    """Say what a successful job has to say beyond its outputs."""
    print(message, flush=True)
    _leave(EXIT_MESSAGE_FILE, message)


def _leave(path: Path, message: str) -> None:
    if path.parent.parent.is_dir():  # /opt/ml: inside a container
        path.parent.mkdir(exist_ok=True)
        path.write_text(message, encoding="utf-8")
