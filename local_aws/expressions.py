"""Pipeline expressions: {"Get": ...}, {"Std:Join": ...}, {"Std:JsonGet": ...} and conditions. Pure: no state, no I/O of its own."""

import datetime
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

FUNCTIONS = ("Std:Join", "Std:JsonGet")
EXECUTION_VARIABLES = (
    "PipelineName",
    "PipelineArn",
    "PipelineExecutionId",
    "PipelineExecutionArn",
    "StartDateTime",
    "CurrentDateTime",
)
# The members by which an item of a list is addressed: Outputs['report'] is the output whose OutputName is "report".
NAMING_MEMBERS = ("OutputName", "InputName", "ChannelName", "MetricName")
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": lambda left, right: left == right,
    "GreaterThan": lambda left, right: left > right,
    "GreaterThanOrEqualTo": lambda left, right: left >= right,
    "LessThan": lambda left, right: left < right,
    "LessThanOrEqualTo": lambda left, right: left <= right,
}
CONDITION_TYPES = (*COMPARISONS, "In", "Not", "Or")


class ExpressionError(Exception):
    """An expression is malformed, or what it names is not there; the message holds the expression."""


@dataclass(frozen=True)
class Context:
    """What expressions see: parameter values, execution variables, finished steps' properties, and JSON files."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, Any] = field(default_factory=dict)
    # (step, property file) -> the file's text, and S3 URI -> the object's text; both raise ExpressionError.
    property_file: Callable[[str, str], str] = lambda step, name: _missing(f"property file '{name}' of step '{step}'")
    s3_text: Callable[[str], str] = lambda uri: _missing(uri)


def _missing(what: str) -> str:
    raise ExpressionError(f"{what} cannot be read here")


def evaluate(value: Any, context: Context) -> Any:
    """`value` with every expression in it replaced by what it stands for. Raises ExpressionError."""
    if isinstance(value, list):
        return [evaluate(member, context) for member in value]
    if not isinstance(value, dict):
        return value
    if is_reference(value):
        return _get(value["Get"], context)
    function = _function(value)
    if function == "Std:Join":
        return _join(value[function], context)
    if function == "Std:JsonGet":
        return _json_get(value[function], context)
    return {name: evaluate(member, context) for name, member in value.items()}


def holds(condition: dict[str, Any], context: Context) -> bool:
    """Whether a condition of a Condition step is true.

    Numbers compare with numbers, strings with strings, booleans with booleans. Anything else, null and NaN included,
    raises ExpressionError: a comparison that means nothing must not choose a branch.
    """
    kind = condition.get("Type")
    if kind == "Not":
        return not holds(condition["Expression"], context)
    if kind == "Or":
        outcomes = [
            holds(member, context) for member in condition["Conditions"]
        ]  # all of them: an error is never skipped
        return any(outcomes)
    if kind == "In":
        query = evaluate(condition["QueryValue"], context)
        members = [evaluate(member, context) for member in condition["Values"]]
        return any(_kind(member) == _kind(query) and member == query for member in members)
    if kind not in COMPARISONS:
        raise ExpressionError(f"unknown condition type '{kind}'; the types are {', '.join(CONDITION_TYPES)}")
    left, right = evaluate(condition["LeftValue"], context), evaluate(condition["RightValue"], context)
    kinds = {_kind(left), _kind(right)}
    if len(kinds) != 1 or not kinds <= {"number", "string", "boolean"}:
        raise ExpressionError(
            f"{kind} cannot compare {_kind(left)} {to_json(left)} (from {to_json(condition['LeftValue'])}) "
            f"with {_kind(right)} {to_json(right)} (from {to_json(condition['RightValue'])})"
        )
    return bool(COMPARISONS[kind](left, right))


def references(value: Any) -> set[str]:
    """The names of the steps that a value's expressions (or a condition's) depend on."""
    return {path.split(".")[1] for path in reference_paths(value) if path.startswith("Steps.")}


def reference_paths(value: Any) -> Iterator[str]:
    """Every path that is read with Get, as it stands: "Parameters.X", "Steps.A.B.C", ..."""
    if isinstance(value, list):
        for member in value:
            yield from reference_paths(member)
    elif isinstance(value, dict):
        if is_reference(value):
            yield value["Get"]
        else:
            for member in value.values():
                yield from reference_paths(member)


def is_reference(value: Any) -> bool:
    """Whether the value is exactly {"Get": "..."}."""
    return isinstance(value, dict) and set(value) == {"Get"} and isinstance(value["Get"], str)


def to_text(value: Any) -> str:
    """A scalar as the service writes it into a string: true and false for booleans, numbers in their shortest form."""
    if isinstance(value, str):
        return value
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if value is None or isinstance(value, dict | list):
        raise ExpressionError(f"{to_json(value)} is no string, number or boolean and cannot become part of a text")
    return to_json(value)


def to_json(value: Any) -> str:
    """JSON on one line, for messages and texts."""
    return json.dumps(value, default=str, ensure_ascii=False)


def parse_json(text: str, where: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are refused. Raises ExpressionError naming `where`."""

    def refuse(constant: str) -> Any:
        raise ExpressionError(f"{where} holds {constant}, which is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise ExpressionError(f"{where} is not JSON: {error}") from None


_TOKEN = re.compile(
    r"""\.?(?P<name>[A-Za-z0-9_\-:/]+)|\[(?P<position>\d+)\]|\[(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\]"""
)


def follow(value: Any, path: str, where: str) -> Any:
    """The member of `value` at a path such as `a.b[0]['c d'].e` (a leading `$` is allowed).

    Raises ExpressionError naming `where`, the first member that is not there, and what is there instead.
    """
    position = 1 if path.startswith("$") else 0
    while position < len(path):
        token = _TOKEN.match(path, position)
        if token is None:
            raise ExpressionError(
                f"{where}: the path '{path}' is malformed at '{path[position:]}'; write a.b, a[0] or a['b']"
            )
        value = _member(value, token, f"{where}: '{path[: token.end()]}'")
        position = token.end()
    return value


def _member(value: Any, token: re.Match[str], what: str) -> Any:
    if token["position"] is not None:
        index = int(token["position"])
        if isinstance(value, list) and index < len(value):
            return value[index]
        raise ExpressionError(f"{what} is not there; {_content(value)}")
    name = token["name"] if token["name"] is not None else token["quoted"]
    if isinstance(value, dict) and name in value:
        return value[name]
    if isinstance(value, list):
        for member in value:
            if isinstance(member, dict) and any(member.get(key) == name for key in NAMING_MEMBERS):
                return member
    raise ExpressionError(f"{what} is not there; {_content(value)}")


def _content(value: Any) -> str:
    if isinstance(value, dict):
        return f"there are: {', '.join(map(str, value)) or 'no members'}"
    if isinstance(value, list):
        names = [member[key] for member in value if isinstance(member, dict) for key in NAMING_MEMBERS if key in member]
        return f"there is a list of {len(value)}" + (f": {', '.join(names)}" if names else "")
    return f"there is {_kind(value)} {to_json(value)}"


def _get(path: str, context: Context) -> Any:
    scope, _, rest = path.partition(".")
    if scope == "Steps":
        step, _, members = rest.partition(".")
        step, bracket, index = step.partition("[")
        if step not in context.steps:
            raise ExpressionError(f"Get {path}: step '{step}' has no properties (yet)")
        return follow(
            context.steps[step], bracket + index + ("." if bracket and members else "") + members, f"Get {path}"
        )
    values = {"Parameters": context.parameters, "Execution": context.execution}.get(scope)
    if values is None:
        raise ExpressionError(f"Get {path}: '{scope}' is none of Parameters, Execution, Steps")
    if rest not in values:
        raise ExpressionError(f"Get {path}: there is no '{rest}'; there are: {', '.join(values)}")
    return values[rest]


def _function(value: dict[str, Any]) -> str | None:
    named = [name for name in value if name.startswith("Std:")]
    if not named:
        return None
    if len(value) != 1 or named[0] not in FUNCTIONS:
        raise ExpressionError(f"unknown function in {to_json(value)}; the functions are {', '.join(FUNCTIONS)}")
    return named[0]


def _join(arguments: dict[str, Any], context: Context) -> str:
    separator = to_text(evaluate(arguments.get("On", ""), context))
    return separator.join(to_text(evaluate(member, context)) for member in arguments["Values"])


def _json_get(arguments: dict[str, Any], context: Context) -> Any:
    if "PropertyFile" in arguments:
        path = arguments["PropertyFile"]["Get"]
        parts = path.split(".")
        if len(parts) != 4 or parts[0] != "Steps" or parts[2] != "PropertyFiles":
            raise ExpressionError(f"JsonGet: '{path}' is not of the form Steps.<step>.PropertyFiles.<name>")
        where = f"JsonGet of property file '{parts[3]}' of step '{parts[1]}'"
        text = context.property_file(parts[1], parts[3])
    elif "S3Uri" in arguments:
        uri = to_text(evaluate(arguments["S3Uri"], context))
        where, text = f"JsonGet of {uri}", context.s3_text(uri)
    else:
        raise ExpressionError(f"JsonGet needs PropertyFile or S3Uri: {to_json(arguments)}")
    return follow(parse_json(text, where), to_text(evaluate(arguments["Path"], context)), where)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number" if math.isfinite(value) else "number that is not finite"
    return {str: "string", type(None): "null", dict: "object", list: "list"}.get(type(value), type(value).__name__)
