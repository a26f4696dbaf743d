"""JSON files with a schema version: never half-written, never read in a version that the code does not know."""

import json
import math
from pathlib import Path
from typing import Any

from pipeline_steps.contract.errors import StepError


def write(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` in one move; whoever sees the file sees all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial")
    # NaN is not JSON and must not travel: a metric that is not a number is left out by who computed it.
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read(path: Path, schema_version: int) -> dict[str, Any]:
    """The content of `path`. Raises StepError if it is missing, no JSON object, or of another schema version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StepError(f"{path} is missing; the step that writes it did not finish") from None
    except ValueError as error:
        raise StepError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("schema_version") != schema_version:
        found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
        raise StepError(
            f"{path} has schema version {found!r}, this code reads {schema_version}; "
            "run the step that writes it again with the present version"
        )
    return content


def finite_or_none(value: float) -> float | None:
    """JSON knows no infinity and no NaN; a report says null where there is no number."""
    return value if math.isfinite(value) else None
