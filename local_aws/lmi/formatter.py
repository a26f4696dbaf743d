"""model.py of a model folder, as LMI reads it: a function that LMI's decorator marks changes each request first.

LMI documents it as "custom input formatter": @input_formatter of djl_python.input_parser, called with the decoded
request and the tokenizer. The image that plays LMI here has no djl_python, so a module of that name holds the decorator.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_aws.lmi.payloads import BadRequest

MARK = "is_input_formatter"
Formatter = Callable[..., Any]


def load(folder: Path) -> Formatter | None:
    """The input formatter of the model folder, or None without model.py. What model.py raises is raised."""
    path = folder / "model.py"
    if not path.is_file():
        return None
    _offer_decorator()
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next((value for value in vars(module).values() if callable(value) and getattr(value, MARK, False)), None)


def apply(formatter: Formatter | None, request: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The request as the formatter changes it. Raises BadRequest with LMI's status 424.

    LMI's answer has the first sentence alone, and the formatter's own words in its log.
    """
    if formatter is None:
        return request
    try:
        changed = formatter(request, tokenizer=tokenizer)
    except Exception as error:
        raise BadRequest(
            f"Custom formatter failed: Custom input formatter execution failed: {error}", code=424
        ) from error
    if not isinstance(changed, dict):
        raise BadRequest(f"Custom formatter failed: it returned {type(changed).__name__}, not an object", code=424)
    return changed


def _offer_decorator() -> None:
    if "djl_python" in sys.modules or importlib.util.find_spec("djl_python") is not None:
        return
    package, module = types.ModuleType("djl_python"), types.ModuleType("djl_python.input_parser")

    def input_formatter(function: Formatter) -> Formatter:
        setattr(function, MARK, True)
        return function

    module.input_formatter = input_formatter  # type: ignore[attr-defined]
    package.input_parser = module  # type: ignore[attr-defined]
    sys.modules.update({"djl_python": package, "djl_python.input_parser": module})
