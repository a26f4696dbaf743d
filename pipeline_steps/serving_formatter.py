"""model.py of a tuned model's folder: the serving image (DJL Serving's LMI) calls it with each request.

`{"inputs": {"column": "text", ...}}` is asked with the prompt that the model was trained with, so that clients need not
know the template; a text stays as it is. It stands alone in the image: standard library and LMI's decorator.
"""

import json
import re
from pathlib import Path
from typing import Any

from djl_python.input_parser import input_formatter  # type: ignore[import-not-found]

PROMPT: str = json.loads(Path(__file__).with_name("prompt_template.json").read_text(encoding="utf-8"))["prompt"]
# As contract/prompt_template.py reads a template: {column}, and a doubled brace for one brace.
PARTS = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_ .-]*)\}")
COLUMNS = list(dict.fromkeys(match[1] for match in PARTS.finditer(PROMPT) if match[1]))


@input_formatter  # type: ignore[untyped-decorator]
def render_prompt(decoded_payload: dict[str, Any], tokenizer: Any = None, **kwargs: Any) -> dict[str, Any]:
    """The request with the rendered prompt. Raises ValueError if columns are missing, unknown, or no texts."""
    row = decoded_payload.get("inputs")
    if not isinstance(row, dict):
        return decoded_payload
    problems = [f"'{column}' is missing" for column in COLUMNS if column not in row]
    problems += [f"'{column}' is unknown" for column in row if column not in COLUMNS]
    problems += [f"'{column}' is no text" for column, value in row.items() if not isinstance(value, str)]
    if problems:
        raise ValueError(f"inputs: {', '.join(problems)}; the columns of this model's prompt are {', '.join(COLUMNS)}")
    prompt = PARTS.sub(lambda match: row[match[1]] if match[1] else match[0][0], PROMPT)
    return {**decoded_payload, "inputs": prompt}
