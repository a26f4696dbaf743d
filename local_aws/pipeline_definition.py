"""Read and check a pipeline definition before it is stored: every problem at once, each with the step's name."""

import json
import re
from collections.abc import Iterator
from typing import Any

from local_aws import expressions
from local_aws.expressions import CONDITION_TYPES, EXECUTION_VARIABLES, FUNCTIONS

Definition = dict[str, Any]
Step = dict[str, Any]

VERSION = "2020-12-01"
PARAMETER_TYPES: dict[str, tuple[type, ...]] = {
    "String": (str,),
    "Integer": (int,),
    "Float": (int, float),
    "Boolean": (bool,),
}


class DefinitionError(Exception):
    """The definition cannot be run; the message lists every problem."""


def read(text: str) -> Definition:
    """Parse and check a definition's JSON text. Raises DefinitionError with all problems."""
    try:
        definition = json.loads(text)
    except ValueError as error:
        raise DefinitionError(f"Unable to parse pipeline definition. It is not JSON: {error}") from None
    if not isinstance(definition, dict) or not isinstance(definition.get("Steps"), list):
        raise DefinitionError("Unable to parse pipeline definition. It is not an object with a list 'Steps'")
    try:
        problems = list(_problems(definition))
    except (KeyError, TypeError, AttributeError) as error:
        problems = [f"it does not have the form of a pipeline definition ({type(error).__name__}: {error})"]
    if problems:
        raise DefinitionError("Unable to parse pipeline definition. " + "; ".join(problems))
    return definition


def all_steps(steps: list[Step]) -> Iterator[Step]:
    """The steps and, after each Condition step, the steps of its branches."""
    for step in steps:
        yield step
        yield from all_steps([branch_step for branch in branches(step) for branch_step in branch])


def branches(step: Step) -> list[list[Step]]:
    """IfSteps and ElseSteps of a Condition step; nothing for any other."""
    if step["Type"] != "Condition":
        return []
    return [step["Arguments"].get("IfSteps", []), step["Arguments"].get("ElseSteps", [])]


def own_arguments(step: Step) -> dict[str, Any]:
    """The step's arguments without the steps of a condition's branches."""
    return {name: value for name, value in step.get("Arguments", {}).items() if name not in ("IfSteps", "ElseSteps")}


def dependencies(step: Step) -> set[str]:
    """The steps that have to be finished before this one starts: those it reads from and those in DependsOn."""
    return expressions.references(own_arguments(step)) | set(step.get("DependsOn", []))


def _problems(definition: Definition) -> Iterator[str]:
    if definition.get("Version") != VERSION:
        yield f"Version is {definition.get('Version')!r}, and must be '{VERSION}'"
    yield from _parameter_problems(definition.get("Parameters", []))
    steps = list(all_steps(definition["Steps"]))
    names = [step["Name"] for step in steps]
    if not names:
        yield "Steps is empty"
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9\-_]{1,64}", name):
            yield f"the step name '{name}' is not 1 to 64 letters, digits, '-' or '_'"
    yield from (f"two steps are named '{name}'" for name in sorted(set(names)) if names.count(name) > 1)
    by_name = {step["Name"]: step for step in steps}
    parameters = {parameter["Name"] for parameter in definition.get("Parameters", [])}
    for step in steps:
        yield from (f"step '{step['Name']}': {problem}" for problem in _step_problems(step, by_name, parameters))
    yield from _cycle_problems(by_name)


def _parameter_problems(parameters: list[dict[str, Any]]) -> Iterator[str]:
    names = [parameter["Name"] for parameter in parameters]
    yield from (f"two parameters are named '{name}'" for name in sorted(set(names)) if names.count(name) > 1)
    for parameter in parameters:
        kind, default = parameter.get("Type"), parameter.get("DefaultValue")
        if kind not in PARAMETER_TYPES:
            yield f"parameter '{parameter['Name']}' has type {kind!r}; the types are {', '.join(PARAMETER_TYPES)}"
        elif default is not None and (
            not isinstance(default, PARAMETER_TYPES[kind]) or (isinstance(default, bool) and kind != "Boolean")
        ):
            yield f"parameter '{parameter['Name']}' is of type {kind} and has the default {default!r}"


def _step_problems(step: Step, by_name: dict[str, Step], parameters: set[str]) -> Iterator[str]:
    for name in step.get("DependsOn", []):
        if name not in by_name:
            yield f"DependsOn names '{name}', which is no step"
    arguments = own_arguments(step)
    for function in _functions(arguments):
        if function not in FUNCTIONS:
            yield f"unknown function '{function}'; the functions are {', '.join(FUNCTIONS)}"
    for path in expressions.reference_paths(arguments):
        scope, _, rest = path.partition(".")
        if scope == "Parameters" and rest not in parameters:
            yield f"there is no parameter '{rest}'"
        elif scope == "Execution" and rest not in EXECUTION_VARIABLES:
            yield f"there is no execution variable '{rest}'; the variables are {', '.join(EXECUTION_VARIABLES)}"
        elif scope == "Steps":
            yield from _step_reference_problems(path, by_name)
        elif scope not in ("Parameters", "Execution"):
            yield f"'{path}' starts with none of Parameters, Execution, Steps"
    if step["Type"] == "Condition":
        for condition in arguments["Conditions"]:
            yield from _condition_problems(condition)


def _step_reference_problems(path: str, by_name: dict[str, Step]) -> Iterator[str]:
    _, name, *rest = path.split(".")
    name = name.partition("[")[0]
    if name not in by_name:
        yield f"'{path}' names '{name}', which is no step"
    elif by_name[name]["Type"] == "Fail":
        yield f"'{path}' reads from '{name}', a Fail step, which has no properties"
    elif rest and rest[0] == "PropertyFiles":
        files = [file["PropertyFileName"] for file in by_name[name].get("PropertyFiles", [])]
        if rest[1:] not in [[file] for file in files]:
            yield f"'{path}' names no property file of step '{name}'; it has: {', '.join(files) or 'none'}"


def _condition_problems(condition: dict[str, Any]) -> Iterator[str]:
    kind = condition.get("Type")
    needed = {"Not": ["Expression"], "Or": ["Conditions"], "In": ["QueryValue", "Values"]}.get(
        str(kind), ["LeftValue", "RightValue"]
    )
    if kind not in CONDITION_TYPES:
        yield f"unknown condition type '{kind}'; the types are {', '.join(CONDITION_TYPES)}"
        return
    yield from (f"the condition {kind} has no {member}" for member in needed if member not in condition)
    nested = (
        condition.get("Conditions", [])
        if kind == "Or"
        else [condition["Expression"]]
        if "Expression" in condition
        else []
    )
    for member in nested:
        yield from _condition_problems(member)


def _functions(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for member in value:
            yield from _functions(member)
    elif isinstance(value, dict):
        yield from (name for name in value if name.startswith("Std:"))
        for member in value.values():
            yield from _functions(member)


def _cycle_problems(by_name: dict[str, Step]) -> Iterator[str]:
    """A step waits for what it depends on; a step in a branch waits for its condition too."""
    waits_for = {name: dependencies(step) & set(by_name) for name, step in by_name.items()}
    for name, step in by_name.items():
        for inner in [inner for branch in branches(step) for inner in branch]:
            waits_for[inner["Name"]] = waits_for[inner["Name"]] | {name}
    finished: set[str] = set()
    while ready := {name for name, needs in waits_for.items() if name not in finished and needs <= finished}:
        finished |= ready
    stuck = set(by_name) - finished
    while after := {name for name in stuck if not any(name in waits_for[other] for other in stuck)}:
        stuck -= after  # waits for the cycle, but is not part of it
    if stuck:
        yield f"the steps {', '.join(sorted(stuck))} wait for each other (a cycle)"
