"""The table of hyperparameters in docs/from-jumpstart.md says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

from pipeline_steps.contract import hyperparameters
from pipeline_steps.contract.hyperparameters import Hyperparameters
from tests.jumpstart import jumpstart_cache

PAGE = Path(__file__).parents[2] / "docs" / "from-jumpstart.md"


def rows() -> dict[str, tuple[str, str, str]]:
    """Name -> (JumpStart's default, what it is here, our default)."""
    found = re.findall(
        r"^\| `(\w+)` \| `([^`]*)` \| ([a-z ]+) \| (?:`([^`]*)`)? ?\|", PAGE.read_text(encoding="utf-8"), re.M
    )
    return {name: (theirs, kind, ours) for name, theirs, kind, ours in found}


def test_the_table_has_every_hyperparameter_with_its_default() -> None:
    document = {
        one["Name"]: one["Default"]
        for one in jumpstart_cache.document()["Hyperparameters"]
        if one["Scope"] == "algorithm"
    }
    assert {name: theirs for name, (theirs, _, _) in rows().items()} == document


def test_what_the_table_says_of_our_training_is_what_it_does() -> None:
    own = {field.name: str(field.default) for field in fields(Hyperparameters)}
    for name, (_, kind, ours) in rows().items():
        expected = (
            ("taken", own[name])
            if name in own
            else ("fixed", hyperparameters.FIXED[name][0])
            if name in hyperparameters.FIXED
            else ("no effect", "")
            if name in hyperparameters.WITHOUT_EFFECT
            else ("data", "")
        )
        assert (kind, ours) == expected, name
        assert kind != "data" or name in hyperparameters.OF_PREPARE_DATA
