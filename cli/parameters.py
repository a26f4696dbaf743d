"""Parameters of an execution, checked before they are sent: against the deployed definition, and the limits of config/."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from botocore.exceptions import ClientError
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cli.aws import Deployment
from cli.console import CommandError
from config.settings import DatasetSettings, GateSettings, ReleaseSettings, TrainingSettings
from pipeline_steps.contract import instances

GROUPS: tuple[type[BaseModel], ...] = (TrainingSettings, GateSettings, DatasetSettings, ReleaseSettings)
KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def parse(pairs: Iterable[str]) -> dict[str, str]:
    """Name -> value of `Name=Value` texts. Raises CommandError naming every one that is none, or that comes twice."""
    pairs = list(pairs)
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise CommandError(f"--parameter {', '.join(wrong)}: expected Name=Value, such as Epoch=2")
    names = [pair.split("=", 1)[0] for pair in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CommandError(f"--parameter {', '.join(twice)}: given twice; give each once")
    return dict(pair.split("=", 1) for pair in pairs)


def checked(deployment: Deployment, given: dict[str, str]) -> dict[str, Any]:
    """All parameters of `<name>-finetune` as the execution would have them: `given` over the deployed defaults.

    Raises CommandError with every problem at once: unknown names with the nearest known one, types, allowed values,
    limits of the configuration, a dataset that is not there.
    """
    declared = {one["Name"]: one for one in _definition(deployment).get("Parameters", [])}
    problems: list[str] = []
    values = {name: one["DefaultValue"] for name, one in declared.items() if "DefaultValue" in one}
    for name, text in given.items():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(declared)}"
            problems.append(f"{name} (value {text!r}) is unknown; {hint}")
            continue
        try:
            values[name] = _typed(text, declared[name]["Type"])
        except ValueError:
            problems.append(f"{name} is {text!r}; allowed: {KINDS[declared[name]['Type']]}")
            continue
        allowed = declared[name].get("EnumValues")
        if allowed is not None and values[name] not in allowed:
            problems.append(f"{name} is {text!r}; allowed: {', '.join(map(str, allowed))}")
        else:
            problems += _beyond_limits(deployment, name, values[name])
    problems += [
        f"{name} ({one['Type']}) has no default; give it with -p {name}=..."
        for name, one in declared.items()
        if name not in given and "DefaultValue" not in one
    ]
    if not problems:
        problems += _without_data(deployment, values)
    if problems:
        raise CommandError("\n".join(["nothing was started:", *(f"  - {problem}" for problem in problems)]))
    return values


def _definition(deployment: Deployment) -> dict[str, Any]:
    name = deployment.settings.finetune_pipeline_name
    try:
        described = deployment.sagemaker.describe_pipeline(PipelineName=name)
    except ClientError as error:
        raise CommandError(f"cannot read the pipeline {name}: {error}\nDeploy first: see 'make deploy'") from error
    found: dict[str, Any] = json.loads(described["PipelineDefinition"])
    return found


def _typed(text: str, kind: str) -> Any:
    if kind == "Boolean":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = {"String": str, "Integer": int, "Float": float}[kind](text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(text)
    return value


def _beyond_limits(deployment: Deployment, name: str, value: Any) -> Iterator[str]:
    """What the configuration would say of this value: a parameter is named as its setting."""
    field = _setting(name)
    if field is not None:
        try:
            TypeAdapter(Annotated[field.annotation, field]).validate_python(value)  # type: ignore[arg-type]
        except ValidationError as error:
            for problem in error.errors():
                yield f"{name} is {value!r}; {problem['msg'][:1].lower()}{problem['msg'][1:]}"
            return
    if name == "TrainingInstanceType":
        configured = deployment.settings.training.instance_type
        if refused := instances.refused_volumes(value, not instances.has_local_storage(configured)):
            yield refused
    if name.endswith("InstanceType"):
        types = deployment.sagemaker.meta.service_model.shape_for("TrainingInstanceType").enum
        if value not in types:
            near = ", ".join(difflib.get_close_matches(value, types, n=3))
            yield f"{name} is {value!r}, which SageMaker does not train on; nearest: {near or 'none'}"


def _setting(parameter: str) -> FieldInfo | None:
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", parameter).lower()
    for group in GROUPS:
        for name in (snake, snake.removeprefix("training_")):
            if name in group.model_fields:
                return group.model_fields[name]
    return None


def _without_data(deployment: Deployment, values: dict[str, Any]) -> Iterator[str]:
    manifest, mode = values.get("DatasetManifest"), values.get("TuningMode")
    if manifest is None:
        return
    if mode is not None and not manifest.startswith(f"{mode}/"):
        yield f"DatasetManifest is {manifest!r} and TuningMode is {mode!r}; a manifest lies under its mode: {mode}/..."
        return
    bucket = deployment.raw_bucket
    try:
        deployment.s3.head_object(Bucket=bucket, Key=manifest)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
            raise
        yield (
            f"DatasetManifest is {manifest!r}, and s3://{bucket}/{manifest} does not exist; upload the data first "
            "(`finetune upload`, which starts the pipeline by itself)"
        )
