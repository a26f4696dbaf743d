"""The rooms' import rules (the picture in README.md), held by walking the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
ROOMS = {"app", "cli", "config", "local_aws", "pipeline", "pipeline_steps", "stacks", "tests"}

# Room -> what of ours it may import besides itself.
ALLOWED = {
    "config": set(),
    "pipeline": {"config", "pipeline_steps.contract"},
    "stacks": {"config", "pipeline"},
    "app": {"config", "stacks"},
    "pipeline_steps": set(),
    "local_aws": set(),
    "cli": {"config", "local_aws", "pipeline_steps.contract"},
}


def sources(room: str) -> list[Path]:
    return [REPOSITORY / "app.py"] if room == "app" else sorted((REPOSITORY / room).rglob("*.py"))


def our_imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import of ours, at any depth, also inside functions and TYPE_CHECKING blocks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ROOMS)


def violations(room: str, source: str) -> list[str]:
    allowed = ALLOWED[room] | {room}
    return [
        f"line {line}: {name}"
        for line, name in our_imports(source)
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)
    ]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_its_rule_allows(room: str) -> None:
    found = {str(path): violations(room, path.read_text(encoding="utf-8")) for path in sources(room)}
    assert found, f"no source found for {room}"
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_has_real_content(room: str) -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources(room)) > 30


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("config", "import stacks"),
        ("cli", "from pipeline_steps.fine_tune import run"),
        ("pipeline", "def f():\n    from pipeline_steps import evaluate"),
        ("local_aws", "import config.settings"),
        ("stacks", "from tests import x"),
    ],
)
def test_the_rule_sees_a_forbidden_import(room: str, source: str) -> None:
    assert violations(room, source)


def test_no_import_is_relative() -> None:
    for room in ALLOWED:
        for path in sources(room):
            relative = [
                node.lineno
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and node.level
            ]
            assert not relative, f"{path}: relative imports on lines {relative}"


def test_the_contract_needs_only_the_standard_library_at_import() -> None:
    """The CDK app imports it without torch, and containers import it before they check their inputs."""
    import sys

    for path in (REPOSITORY / "pipeline_steps" / "contract").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top == "pipeline_steps", f"{path}: {name}"
