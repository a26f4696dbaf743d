"""`python3 <hash>.zip <step> [flags]`: the entry of every container.

What the user can mend ends the step with one message: on stderr, and where SageMaker reads the reason of a failed job.
"""

import importlib
import sys

from pipeline_steps.contract.errors import SHOWN, DataError, StepError
from pipeline_steps.contract.messages import tell_failure

STEPS = {
    "prepare-data": "check, split and publish a dataset (processing job)",
    "fine-tune": "train an adapter and merge it (training job)",
    "to-jumpstart": "a dataset as JumpStart's training reads it (processing job)",
    "from-jumpstart": "a model that JumpStart trained, as fine-tune leaves one (processing job)",
    "evaluate": "score base and tuned model, and decide (processing job)",
    "compare": "answers to your prompts before and after (processing job)",
    "monitor": "compare an endpoint's traffic with its evaluation (processing job)",
    "deploy": "release a model package to an endpoint (processing job)",
    "to-bedrock": "import a model package into Bedrock (processing job)",
}
USAGE = "\n".join(
    [
        "usage: python3 CODE.zip STEP [flags]; STEP --help lists its flags",
        *(f"  {name:16}{what}" for name, what in STEPS.items()),
    ]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the step named by the first argument; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in STEPS:
        print(f"unknown step {arguments[0]!r}\n{USAGE}", file=sys.stderr)
        return 2
    step = importlib.import_module(f"pipeline_steps.{arguments[0].replace('-', '_')}")
    try:
        step.main(arguments[1:])
    except StepError as error:
        if isinstance(error, DataError) and len(error.problems) > SHOWN:
            print("\n".join(error.problems), file=sys.stderr)  # the message has room for the first ones only
        tell_failure(str(error))
        return 1
    except Exception as error:  # a fault of ours: its traceback belongs in the log, its name in the reason
        tell_failure(f"{type(error).__name__}: {error}; see the job's log for where")
        raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
