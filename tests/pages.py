"""Data cards as samples for the tests of the pages."""

import json
from pathlib import Path
from typing import Any

DATA_CARDS = sorted((Path(__file__).parent / "pipeline_steps" / "data_cards").glob("*.json"))


def data_card(name: str) -> dict[str, Any]:
    (path,) = (path for path in DATA_CARDS if path.stem == name)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
