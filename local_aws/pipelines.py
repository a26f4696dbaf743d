"""SageMaker Pipelines: pipelines and their executions as the API shows them; pipeline_run.py executes."""

import copy
import json
import random
import string
from typing import Any

from local_aws import expressions, pipeline_definition, selective_execution
from local_aws.jobs import END_SECONDS, Jobs
from local_aws.object_store import ObjectStore, ObjectStoreError
from local_aws.pipeline_definition import DefinitionError
from local_aws.pipeline_run import Execution, Runner
from local_aws.sagemaker_api import (
    ConflictException,
    Request,
    ResourceNotFound,
    Response,
    Service,
    ValidationException,
    name_in,
    now,
    page,
    random_id,
    tags_of,
)


class Pipelines:
    """CreatePipeline, StartPipelineExecution and what belongs to them."""

    def __init__(self, service: Service, store: ObjectStore, jobs: Jobs) -> None:
        self._service = service
        self._store = store
        self._pipelines: dict[str, dict[str, Any]] = {}  # by name in lower case: ARNs hold it so
        self._executions: dict[str, Execution] = {}  # by ARN
        # (ARN of the pipeline, or of the execution that is retried, ClientRequestToken) -> ARN of the execution
        self._started_by: dict[tuple[str, str], str] = {}
        self._runner = Runner(service, store, jobs)

    # ------------------------------------------------------------------ pipelines

    def create_pipeline(self, request: Request) -> Response:
        name = request["PipelineName"]
        arn = self._service.arn(f"pipeline/{name.lower()}")
        text = self._definition_text(request)
        with self._service.changed:
            if name.lower() in self._pipelines:
                raise ConflictException(
                    f"Pipeline names must be unique within an AWS account and region. Pipeline with name ({name}) already exists."
                )
            kept = ("PipelineName", "PipelineDisplayName", "PipelineDescription", "RoleArn", "ParallelismConfiguration")
            self._pipelines[name.lower()] = {
                "PipelineDisplayName": name,
                **{field: copy.deepcopy(request[field]) for field in kept if field in request},
                "PipelineArn": arn,
                "PipelineDefinition": text,
                "PipelineStatus": "Active",
                "CreationTime": now(),
                "LastModifiedTime": now(),
            }
            self._service.tags[arn] = tags_of(request)
        return {"PipelineArn": arn}

    def update_pipeline(self, request: Request) -> Response:
        self._pipeline(request["PipelineName"])
        given = "PipelineDefinition" in request or "PipelineDefinitionS3Location" in request
        fields = {"PipelineDefinition": self._definition_text(request)} if given else {}
        kept = ("PipelineDisplayName", "PipelineDescription", "RoleArn", "ParallelismConfiguration")
        fields |= {field: copy.deepcopy(request[field]) for field in kept if field in request}
        with self._service.changed:
            pipeline = self._pipelines[name_in(request["PipelineName"]).lower()]
            pipeline.update({**fields, "LastModifiedTime": now()})
            return {"PipelineArn": pipeline["PipelineArn"]}

    def delete_pipeline(self, request: Request) -> Response:
        pipeline = self._pipeline(request["PipelineName"])
        arn = pipeline["PipelineArn"]
        with self._service.changed:
            running = [
                execution.arn
                for execution in self._executions.values()
                if execution.record["PipelineArn"] == arn
                and execution.record["PipelineExecutionStatus"] in ("Executing", "Stopping")
            ]
            if running:
                raise ConflictException(f"Pipeline {arn} has running executions, stop them first: {', '.join(running)}")
            del self._pipelines[pipeline["PipelineName"].lower()]
            self._service.tags.pop(arn, None)
        self._runner.forget(arn)
        return {"PipelineArn": arn}

    def describe_pipeline(self, request: Request) -> Response:
        pipeline = self._pipeline(request["PipelineName"])
        return {**pipeline, "CreatedBy": {}, "LastModifiedBy": {}}

    def list_pipelines(self, request: Request) -> Response:
        with self._service.changed:
            pipelines = [copy.deepcopy(pipeline) for pipeline in self._pipelines.values()]
        for pipeline in pipelines:
            if "LastRunTime" in pipeline:
                pipeline["LastExecutionTime"] = pipeline["LastRunTime"]
        renamed = {**request, "NameContains": request.get("PipelineNamePrefix", "")}
        kept, token = page(pipelines, renamed, name="PipelineName")
        return {"PipelineSummaries": kept, **token}

    def _pipeline(self, name_or_arn: str) -> dict[str, Any]:
        name = name_in(name_or_arn)
        with self._service.changed:
            if name.lower() not in self._pipelines:
                raise ResourceNotFound(f"Pipeline '{self._service.arn('pipeline/' + name.lower())}' does not exist.")
            return copy.deepcopy(self._pipelines[name.lower()])

    def _definition_text(self, request: Request) -> str:
        if ("PipelineDefinition" in request) == ("PipelineDefinitionS3Location" in request):
            raise ValidationException("One of PipelineDefinition and PipelineDefinitionS3Location is needed")
        try:
            if "PipelineDefinition" in request:
                text = str(request["PipelineDefinition"])
            else:
                location = request["PipelineDefinitionS3Location"]
                text = self._store.read(f"s3://{location['Bucket']}/{location['ObjectKey']}").decode()
            pipeline_definition.read(text)
        except (DefinitionError, ObjectStoreError, UnicodeDecodeError) as error:
            raise ValidationException(str(error)) from None
        return text

    # ------------------------------------------------------------------ executions

    def start_pipeline_execution(self, request: Request) -> Response:
        pipeline = self._pipeline(request["PipelineName"])
        arn = pipeline["PipelineArn"]
        role = request.get("RoleArn", pipeline["RoleArn"])
        parameters = parameter_values(json.loads(pipeline["PipelineDefinition"]), request.get("PipelineParameters", []))
        token = (arn, request.get("ClientRequestToken", random_id(32)))
        with self._service.changed:
            if token in self._started_by:
                return {"PipelineExecutionArn": self._started_by[token]}
            execution_id = "".join(random.choices(string.ascii_lowercase + string.digits, k=12))
            started = now()
            kept = ("PipelineExecutionDescription", "PipelineExecutionDisplayName", "ParallelismConfiguration")
            record = {
                "PipelineExecutionDisplayName": f"execution-{int(started.timestamp() * 1000)}",
                "ParallelismConfiguration": pipeline.get("ParallelismConfiguration", {}),
                **{field: copy.deepcopy(request[field]) for field in kept if field in request},
                "PipelineArn": arn,
                "PipelineExecutionArn": f"{arn}/execution/{execution_id}",
                "PipelineExecutionStatus": "Executing",
                "CreationTime": started,
                "LastModifiedTime": started,
            }
            stamp = started.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            variables = {
                "PipelineName": pipeline["PipelineName"],
                "PipelineArn": arn,
                "PipelineExecutionId": execution_id,
                "PipelineExecutionArn": record["PipelineExecutionArn"],
                "StartDateTime": stamp,
                "CurrentDateTime": stamp,
            }
            execution = Execution(record, pipeline["PipelineDefinition"], parameters, variables, role)
            if "SelectiveExecutionConfig" in request:
                selective_execution.prepare(execution, request["SelectiveExecutionConfig"], self._executions)
            self._executions[execution.arn] = execution
            self._started_by[token] = execution.arn
            self._pipelines[pipeline["PipelineName"].lower()]["LastRunTime"] = started
        self._runner.start(execution)
        return {"PipelineExecutionArn": execution.arn}

    def stop_pipeline_execution(self, request: Request) -> Response:
        execution = self._execution(request["PipelineExecutionArn"])
        self._runner.stop(execution)
        return {"PipelineExecutionArn": execution.arn}

    def retry_pipeline_execution(self, request: Request) -> Response:
        execution = self._execution(request["PipelineExecutionArn"])
        token = (execution.arn, request.get("ClientRequestToken", random_id(32)))
        with self._service.changed:
            if token in self._started_by:
                return {"PipelineExecutionArn": execution.arn}
            status = execution.record["PipelineExecutionStatus"]
            if status not in ("Failed", "Stopped"):
                raise ConflictException(
                    f"Only an execution in status Failed or Stopped can be retried; {execution.arn} is {status}."
                )
            self._started_by[token] = execution.arn
            if "ParallelismConfiguration" in request:
                execution.record["ParallelismConfiguration"] = copy.deepcopy(request["ParallelismConfiguration"])
            self._runner.retry(execution)
        return {"PipelineExecutionArn": execution.arn}

    def describe_pipeline_execution(self, request: Request) -> Response:
        execution = self._execution(request["PipelineExecutionArn"])
        with self._service.changed:
            return {**copy.deepcopy(execution.record), "RoleArn": execution.role, "CreatedBy": {}, "LastModifiedBy": {}}

    def update_pipeline_execution(self, request: Request) -> Response:
        execution = self._execution(request["PipelineExecutionArn"])
        with self._service.changed:
            for field in ("PipelineExecutionDescription", "PipelineExecutionDisplayName"):
                if field in request:
                    execution.record[field] = request[field]
        return {"PipelineExecutionArn": execution.arn}

    def list_pipeline_executions(self, request: Request) -> Response:
        arn = self._pipeline(request["PipelineName"])["PipelineArn"]
        with self._service.changed:
            # Not deep: of thousands only a page is shown, and what a record's fields hold is never changed in place.
            records = [dict(one.record) for one in self._executions.values() if one.record["PipelineArn"] == arn]
        for record in records:
            record["StartTime"] = record["CreationTime"]
            if "FailureReason" in record:
                record["PipelineExecutionFailureReason"] = record["FailureReason"]
        times = {"CreationTimeAfter": request.get("CreatedAfter"), "CreationTimeBefore": request.get("CreatedBefore")}
        kept, token = page(
            records,
            {**request, **times},
            name="PipelineExecutionArn",
            sort_keys={"PipelineExecutionArn": "PipelineExecutionArn"},
        )
        return {"PipelineExecutionSummaries": kept, **token}

    def list_pipeline_execution_steps(self, request: Request) -> Response:
        execution = self._execution(request["PipelineExecutionArn"])
        with self._service.changed:
            steps = [
                {**copy.deepcopy(step.record), "CreationTime": place} for place, step in enumerate(execution.steps)
            ]
        steps, token = page(steps, {**request, "SortBy": "CreationTime"}, name="StepName")
        return {
            "PipelineExecutionSteps": [{key: step[key] for key in step if key != "CreationTime"} for step in steps],
            **token,
        }

    def list_pipeline_parameters_for_execution(self, request: Request) -> Response:
        execution = self._execution(request["PipelineExecutionArn"])
        values = [{"Name": name, "Value": expressions.to_text(value)} for name, value in execution.parameters.items()]
        parameters, token = page(
            [{**value, "CreationTime": place} for place, value in enumerate(values)],
            request,
            name="Name",
            default_order="Ascending",
        )
        return {"PipelineParameters": [{"Name": item["Name"], "Value": item["Value"]} for item in parameters], **token}

    def describe_pipeline_definition_for_execution(self, request: Request) -> Response:
        execution = self._execution(request["PipelineExecutionArn"])
        return {"PipelineDefinition": execution.definition_text, "CreationTime": execution.record["CreationTime"]}

    def shutdown(self) -> None:
        """Start no step any more."""
        self._runner.shutdown()

    def state(self) -> dict[str, Any]:
        """After `shutdown`: pipelines, executions and the step cache. What has not ended by then counts as stopped."""
        running = ("Executing", "Stopping")

        def at_work() -> list[Execution]:
            return [one for one in self._executions.values() if one.record["PipelineExecutionStatus"] in running]

        with self._service.changed:
            self._service.changed.wait_for(lambda: not at_work(), END_SECONDS)
            for execution in at_work():
                execution.record["PipelineExecutionStatus"] = "Stopped"
            return {
                "pipelines": self._pipelines,
                "executions": self._executions,
                "started_by": self._started_by,
                "cache": self._runner.cache,
            }

    def take_over(self, state: dict[str, Any]) -> None:
        """Know the pipelines and executions of another one's `state`."""
        self._pipelines.update(state["pipelines"])
        self._executions.update(state["executions"])
        self._started_by.update(state["started_by"])
        self._runner.cache.update(state["cache"])

    def _execution(self, arn: str) -> Execution:
        with self._service.changed:
            if arn not in self._executions:
                raise ResourceNotFound(f"Pipeline execution '{arn}' does not exist.")
            return self._executions[arn]


def parameter_values(definition: dict[str, Any], given: list[dict[str, str]]) -> dict[str, Any]:
    """The value of every parameter of the definition, in its type. Raises ValidationException with every problem at once."""
    declared = {parameter["Name"]: parameter for parameter in definition.get("Parameters", [])}
    texts = {item["Name"]: item["Value"] for item in given}
    problems = [
        f"Unknown parameter '{name}'; the pipeline's parameters are {', '.join(declared) or 'none'}"
        for name in texts
        if name not in declared
    ]
    problems += [
        f"Parameter '{item['Name']}' is given twice"
        for place, item in enumerate(given)
        if item["Name"] in [other["Name"] for other in given[:place]]
    ]
    values = {}
    for name, parameter in declared.items():
        if name not in texts and "DefaultValue" not in parameter:
            problems.append(f"Parameter '{name}' ({parameter['Type']}) has no default and no value is given")
            continue
        try:
            values[name] = _typed(texts[name], parameter["Type"]) if name in texts else parameter["DefaultValue"]
        except ValueError:
            problems.append(f"Parameter '{name}' is of type {parameter['Type']} and cannot be '{texts[name]}'")
            continue
        allowed = parameter.get("EnumValues")
        if allowed is not None and values[name] not in allowed:
            problems.append(
                f"Parameter '{name}' is '{values[name]}', and must be one of {', '.join(map(str, allowed))}"
            )
    if problems:
        raise ValidationException("; ".join(problems))
    return values


def _typed(text: str, kind: str) -> Any:
    if kind == "Boolean":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = {"String": str, "Integer": int, "Float": float}[kind](text)
    if isinstance(value, float) and value - value != 0:
        raise ValueError(text)  # NaN and infinity
    return value
