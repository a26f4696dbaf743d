"""Selective execution: some steps of a pipeline run, what they need of the others comes from an earlier execution."""

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from local_aws import pipeline_definition
from local_aws.pipeline_definition import Step
from local_aws.pipeline_run import Execution, StepRun
from local_aws.sagemaker_api import ValidationException, now

REFERENCES = ("Succeeded", "Failed")  # what a source execution may have ended as


def prepare(execution: Execution, configuration: dict[str, Any], executions: Mapping[str, Execution]) -> None:
    """Limit a new execution to the selected steps, and give it the results of the source that these need.

    `configuration` is SelectiveExecutionConfig; `executions` are all, by ARN. Raises ValidationException with every
    problem at once; the execution is unchanged then.
    """
    steps = {step["Name"]: step for step in pipeline_definition.all_steps(execution.definition["Steps"])}
    selected = [item["StepName"] for item in configuration["SelectedSteps"]]
    problems = [f"There is no step '{name}'{_nearest(name, steps)}" for name in selected if name not in steps]
    if problems:
        raise ValidationException("; ".join(problems))
    conditions = _conditions(execution.definition["Steps"])
    problems += _gaps(steps, conditions, set(selected))
    needed = _needed(steps, conditions, set(selected))
    source = executions.get(configuration.get("SourcePipelineExecutionArn", ""))
    if needed and source is None:
        given = configuration.get("SourcePipelineExecutionArn")
        problems.append(
            f"SourcePipelineExecutionArn is {given!r}, which is no execution"
            if given
            else f"SourcePipelineExecutionArn is needed: the selected steps depend on {', '.join(needed)}"
        )
    elif source is not None:
        problems += _source_problems(execution, source, needed, conditions, selected)
    if problems:
        raise ValidationException("; ".join(problems))

    execution.selected = frozenset(selected)
    for name in needed if source else []:
        assert source is not None
        execution.properties[name] = copy.deepcopy(source.properties[name])
        execution.steps.append(_reused(steps[name], source))


def _nearest(name: str, steps: Mapping[str, Step]) -> str:
    near = difflib.get_close_matches(name, steps, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; the steps are {', '.join(steps)}"


def _conditions(steps: list[Step], above: tuple[tuple[str, bool], ...] = ()) -> dict[str, tuple[tuple[str, bool], ...]]:
    """For each step the Condition steps that it lies in, outermost first, each with the outcome that leads to it."""
    found = {}
    for step in steps:
        found[step["Name"]] = above
        for branch, outcome in zip(pipeline_definition.branches(step), (True, False), strict=False):
            found |= _conditions(branch, (*above, (step["Name"], outcome)))
    return found


def _needed(
    steps: Mapping[str, Step], conditions: Mapping[str, tuple[tuple[str, bool], ...]], selected: set[str]
) -> list[str]:
    """The steps that are not selected and whose results the selected ones read, in the definition's order."""
    read = {name for one in selected for name in pipeline_definition.dependencies(steps[one])}
    read |= {name for one in selected for name, _ in conditions[one]}
    return [name for name in steps if name in read - selected]


def _gaps(
    steps: Mapping[str, Step], conditions: Mapping[str, tuple[tuple[str, bool], ...]], selected: set[str]
) -> list[str]:
    """A problem if a step lies on a path between two selected ones and is not selected itself."""
    before = {
        name: pipeline_definition.dependencies(step) | {condition for condition, _ in conditions[name]}
        for name, step in steps.items()
    }
    known: dict[str, set[str]] = {}

    def upstream(name: str) -> set[str]:
        if name not in known:
            known[name] = before[name].union(*(upstream(other) for other in before[name]))
        return known[name]

    of_selected = set().union(*(upstream(name) for name in selected))
    gaps = [name for name in steps if name in of_selected - selected and upstream(name) & selected]
    if not gaps:
        return []
    return [f"{', '.join(gaps)}: on the way from one selected step to another, and not selected; select it too"]


def _source_problems(
    execution: Execution,
    source: Execution,
    needed: list[str],
    conditions: Mapping[str, tuple[tuple[str, bool], ...]],
    selected: list[str],
) -> list[str]:
    if source.record["PipelineArn"] != execution.record["PipelineArn"]:
        return [f"{source.arn} is an execution of another pipeline"]
    status = source.record["PipelineExecutionStatus"]
    if status not in REFERENCES:
        return [f"{source.arn} is {status}; a source has {' or '.join(REFERENCES)}"]
    problems = [
        f"step '{name}' has not succeeded in {source.arn}, and the selected steps need it"
        for name in needed
        if name not in source.properties
    ]
    for name in selected:
        for condition, outcome in conditions[name]:
            taken = source.properties.get(condition, {}).get("Outcome")
            if condition in needed and taken is not None and taken != outcome:
                problems.append(f"step '{name}' lies in a branch of '{condition}' that {source.arn} did not take")
    return problems


def _reused(step: Step, source: Execution) -> StepRun:
    run = StepRun(step)
    (before,) = [one for one in source.steps if one.name == run.name]
    run.record.update(
        StepStatus="Succeeded",
        EndTime=now(),
        Metadata=copy.deepcopy(before.record.get("Metadata", {})),
        SelectiveExecutionResult={"SourcePipelineExecutionArn": source.arn},
    )
    return run
