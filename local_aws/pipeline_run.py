"""Run one execution of a pipeline: steps in parallel where nothing stands against it, retries, cache, stop, events."""

import copy
import datetime
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import boto3
import botocore
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local_aws import expressions, identity, pipeline_definition
from local_aws.authorization import Caller
from local_aws.expressions import ExpressionError
from local_aws.jobs import Jobs, Kind
from local_aws.object_store import ObjectStore, ObjectStoreError
from local_aws.pipeline_definition import Step
from local_aws.sagemaker_api import (
    PRINCIPAL,
    ConflictException,
    Request,
    Service,
    ValidationException,
    now,
    random_id,
    validate,
)

log = logging.getLogger(__name__)

LONGEST_STEP_REASON = 1024
LONGEST_EXECUTION_REASON = 1300
DEFAULT_PARALLEL_STEPS = 50
# The arguments that decide whether an earlier run of a step can be reused, as AWS documents them.
CACHE_KEYS = {
    "Processing": ("AppSpecification", "Environment", "ProcessingInputs"),
    "Training": (
        "AlgorithmSpecification",
        "CheckpointConfig",
        "DebugHookConfig",
        "DebugRuleConfigurations",
        "Environment",
        "HyperParameters",
        "InputDataConfig",
    ),
}
JOB_KINDS: dict[str, Kind] = {"Processing": "Processing", "Training": "Training"}
STEP_TYPES = (*JOB_KINDS, "Model", "RegisterModel", "Condition", "Fail")
THROTTLING_CODES = (
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
)


class StepFailed(Exception):
    """A step failed; the text is its FailureReason. `fault` is the retry policies' name for what happened, if they have one."""

    def __init__(self, reason: str, fault: str | None = None) -> None:
        super().__init__(reason)
        self.fault = fault


class StepStopped(Exception):
    """The execution was stopped while the step ran."""


class StepRun:
    """One step of one execution: what ListPipelineExecutionSteps returns, and the job that runs for it."""

    def __init__(self, step: Step, attempt: int = 1) -> None:
        self.step = step
        self.job: tuple[Kind, str] | None = None
        self.record: dict[str, Any] = {
            "StepName": step["Name"],
            **({"StepDisplayName": step["DisplayName"]} if step.get("DisplayName") else {}),
            **({"StepDescription": step["Description"]} if step.get("Description") else {}),
            "StepStatus": "Starting",
            "StartTime": now(),
            "AttemptCount": attempt,
        }

    @property
    def name(self) -> str:
        return str(self.step["Name"])

    @property
    def status(self) -> str:
        return str(self.record["StepStatus"])

    @property
    def ended(self) -> bool:
        return self.status in ("Succeeded", "Failed", "Stopped")


class Execution:
    """One execution of a pipeline."""

    def __init__(
        self,
        record: dict[str, Any],
        definition_text: str,
        parameters: dict[str, Any],
        variables: dict[str, str],
        role: str,
    ):
        self.record = record
        self.definition_text = definition_text
        self.definition = json.loads(definition_text)
        self.parameters = parameters
        self.variables = variables
        self.role = role
        self.selected: frozenset[str] | None = None  # the steps that run in a selective execution; None: all
        self.steps: list[StepRun] = []  # in the order in which they started
        self.properties: dict[str, Any] = {}  # of the steps that succeeded
        self.attempts: dict[str, int] = {}  # of the steps that are run again, before that
        self.failure: str | None = None
        self.stop_requested = False

    @property
    def arn(self) -> str:
        return str(self.record["PipelineExecutionArn"])

    @property
    def name(self) -> str:
        """As what the pipeline's role is known: <pipeline>-<execution id>."""
        return "-".join(self.arn.rsplit("/", 3)[1::2])

    def still_to_run(self, steps: list[Step]) -> list[Step]:
        """Those of `steps` that this execution runs and has not started yet."""
        started = {step.name for step in self.steps}
        return [
            step
            for step in steps
            if step["Name"] not in started and (self.selected is None or step["Name"] in self.selected)
        ]


class Runner:
    """Executes pipelines: a thread an execution, a thread a running step."""

    def __init__(self, service: Service, store: ObjectStore, jobs: Jobs) -> None:
        self._service = service
        self._store = store
        self._jobs = jobs
        # (pipeline ARN, digest of step and arguments) -> when it ended, execution, properties, metadata
        self.cache: dict[tuple[str, str], tuple[datetime.datetime, str, dict[str, Any], dict[str, Any]]] = {}
        self._closed = False
        self._botocore = botocore.session.Session()
        self._botocore_lock = threading.Lock()  # making clients of one session is not safe among threads

    def start(self, execution: Execution) -> None:
        """Run an execution in the background."""
        threading.Thread(target=self._run, args=(execution,), name=execution.arn, daemon=True).start()

    def retry(self, execution: Execution) -> None:
        """Run what did not succeed of an execution that has ended once more; what succeeded stays as it is."""
        with self._service.changed:
            failed = [step for step in execution.steps if step.status != "Succeeded"]
            execution.steps = [step for step in execution.steps if step.status == "Succeeded"]
            execution.attempts.update({step.name: step.record["AttemptCount"] for step in failed})
            execution.failure, execution.stop_requested = None, False
            execution.record.pop("FailureReason", None)
            before = execution.record["PipelineExecutionStatus"]
            self._set_execution_status(execution, "Executing")
        threading.Thread(target=self._run, args=(execution, before), name=execution.arn, daemon=True).start()

    def stop(self, execution: Execution) -> None:
        """Stop an execution: its running jobs are stopped, no step is started any more. Not with the lock held.

        Raises ConflictException if it is not executing.
        """
        with self._service.changed:
            status = execution.record["PipelineExecutionStatus"]
            if status != "Executing":
                raise ConflictException(
                    f"Only an execution in status Executing can be stopped; {execution.arn} is {status}."
                )
            self._set_execution_status(execution, "Stopping")
            execution.stop_requested = True
            running = [step for step in execution.steps if not step.ended]
            for step in running:
                step.record["StepStatus"] = "Stopping"
            jobs = [step.job for step in running if step.job is not None]
        self._emit_execution(execution, "Executing")
        for job in jobs:
            self._stop_job(execution, job)

    def forget(self, pipeline_arn: str) -> None:
        """Drop the cached steps of a pipeline that was deleted."""
        with self._service.changed:
            self.cache = {key: value for key, value in self.cache.items() if key[0] != pipeline_arn}

    def shutdown(self) -> None:
        """Start no step any more."""
        with self._service.changed:
            self._closed = True
            self._service.changed.notify_all()

    def _run(self, execution: Execution, status_before: str | None = None) -> None:
        """Start every step as soon as it can run, until nothing runs and nothing can be started; runs in its own thread."""
        self._emit_execution(execution, status_before)
        pending: list[Step] = execution.still_to_run(execution.definition["Steps"])
        limit = execution.record["ParallelismConfiguration"].get("MaxParallelExecutionSteps", DEFAULT_PARALLEL_STEPS)
        opened: set[str] = set()  # the Condition steps whose branch was added to `pending`
        changed = self._service.changed
        with changed:
            while True:
                for step in execution.steps:
                    if step.status == "Succeeded" and step.step["Type"] == "Condition" and step.name not in opened:
                        opened.add(step.name)
                        if_steps, else_steps = pipeline_definition.branches(step.step)
                        pending += execution.still_to_run(
                            if_steps if execution.properties[step.name]["Outcome"] else else_steps
                        )
                running = sum(not step.ended for step in execution.steps)
                may_start = execution.failure is None and not execution.stop_requested and not self._closed
                done = execution.properties.keys()
                ready = [definition for definition in pending if pipeline_definition.dependencies(definition) <= done]
                for definition in ready[: limit - running] if may_start else []:
                    pending.remove(definition)
                    run = StepRun(definition, execution.attempts.get(definition["Name"], 0) + 1)
                    execution.steps.append(run)
                    running += 1
                    threading.Thread(
                        target=self._run_step, args=(execution, run), name=f"{execution.arn}/{run.name}", daemon=True
                    ).start()
                if running == 0:
                    break
                changed.wait()
            # A step that still waits depends on a branch that was not taken: it does not run, and nothing is wrong.
            before = execution.record["PipelineExecutionStatus"]
            if execution.failure is not None:
                execution.record["FailureReason"] = execution.failure[:LONGEST_EXECUTION_REASON]
            status = (
                "Stopped"
                if execution.stop_requested or self._closed
                else "Failed"
                if execution.failure is not None
                else "Succeeded"
            )
            self._set_execution_status(execution, status)
        self._emit_execution(execution, before)

    def _run_step(self, execution: Execution, run: StepRun) -> None:
        """Run one step to its end, whatever happens; runs in the step's own thread."""
        end: dict[str, Any] = {"StepStatus": "Succeeded"}
        properties: dict[str, Any] | None = None
        self._emit_step(execution, run, None)
        try:
            self._set_step(execution, run, {"StepStatus": "Executing"})
            properties = self._step_properties(execution, run)
        except StepStopped:
            end = {"StepStatus": "Stopped"}
        except StepFailed as failure:
            end = {"StepStatus": "Failed", "FailureReason": str(failure)[:LONGEST_STEP_REASON]}
        except (ExpressionError, ObjectStoreError) as error:
            end = {"StepStatus": "Failed", "FailureReason": f"ClientError: {error}"[:LONGEST_STEP_REASON]}
        except Exception as error:
            log.exception("step %s of %s", run.name, execution.arn)
            end = {
                "StepStatus": "Failed",
                "FailureReason": f"InternalServerError: {type(error).__name__}: {error}"[:LONGEST_STEP_REASON],
            }
        with self._service.changed:  # result and status at once: who waits for the one sees the other
            before = run.status
            run.record.update({**end, "EndTime": now()})
            self._service.changed.notify_all()
            if properties is not None:
                execution.properties[run.name] = properties
            elif end["StepStatus"] == "Failed" and execution.failure is None:
                reason = end["FailureReason"]
                # AWS says the first sentence only; the reason is what one needs to know.
                execution.failure = (
                    reason
                    if run.step["Type"] == "Fail"
                    else f"Step failure: One or multiple steps failed. {run.name}: {reason}"
                )
        self._emit_step(execution, run, before)

    def _step_properties(self, execution: Execution, run: StepRun) -> dict[str, Any]:
        """Do what a step does; returns its properties, which later steps read."""
        step, kind = run.step, run.step["Type"]
        context = self._context(execution)
        if kind == "Condition":
            outcomes = [expressions.holds(condition, context) for condition in step["Arguments"]["Conditions"]]
            outcome = all(outcomes)
            self._set_step(execution, run, {"Metadata": {"Condition": {"Outcome": str(outcome)}}})
            return {"Outcome": outcome}
        if kind not in STEP_TYPES:
            raise StepFailed(
                f"ClientError: steps of type '{kind}' do not run on local AWS; the types are {', '.join(STEP_TYPES)}"
            )
        arguments = expressions.evaluate(pipeline_definition.own_arguments(step), context)
        if kind == "Fail":
            message = expressions.to_text(arguments.get("ErrorMessage", ""))
            self._set_step(execution, run, {"Metadata": {"Fail": {"ErrorMessage": message}}})
            raise StepFailed(message)
        arguments = _as_text(arguments)
        cached = self._cached(execution, run, arguments)
        if cached is not None:
            return cached
        work = {"Model": self._create_model, "RegisterModel": self._register_model}.get(kind, self._run_job)
        properties = self._with_retries(execution, run, lambda: work(execution, run, copy.deepcopy(arguments)))
        self._remember(execution, run, arguments, properties)
        return properties

    def _run_job(self, execution: Execution, run: StepRun, request: Request) -> dict[str, Any]:
        kind = JOB_KINDS[run.step["Type"]]
        name = self._resource_name(execution, run)
        self._call(execution, f"Create{kind}Job", {f"{kind}JobName": name, **request})
        arn = self._service.arn(f"{kind.lower()}-job/{name}")
        with self._service.changed:
            run.job = (kind, name)
            stopping = execution.stop_requested
        self._set_step(execution, run, {"Metadata": {f"{kind}Job": {"Arn": arn}}})
        if stopping:  # the request to stop came while the job was being created
            self._stop_job(execution, run.job)
        self._jobs.wait(kind, name)
        job = self._call(execution, f"Describe{kind}Job", {f"{kind}JobName": name})
        status = job[f"{kind}JobStatus"]
        if execution.stop_requested:
            raise StepStopped
        if status != "Completed":
            reason = (
                job.get("FailureReason")
                or job.get("ExitMessage")
                or f"The {kind.lower()} job {name} ended with status {status}"
            )
            raise StepFailed(reason, _fault_of_reason(reason))
        return job

    def _create_model(self, execution: Execution, run: StepRun, request: Request) -> dict[str, Any]:
        name = request.setdefault("ModelName", self._resource_name(execution, run))
        response = self._call(execution, "CreateModel", request)
        self._set_step(execution, run, {"Metadata": {"Model": {"Arn": response["ModelArn"]}}})
        return self._call(execution, "DescribeModel", {"ModelName": name})

    def _register_model(self, execution: Execution, run: StepRun, request: Request) -> dict[str, Any]:
        group = request.get("ModelPackageGroupName")
        if group is not None:
            try:
                self._call(execution, "DescribeModelPackageGroup", {"ModelPackageGroupName": group})
            except StepFailed:  # the step makes the group of its first version
                self._call(execution, "CreateModelPackageGroup", {"ModelPackageGroupName": group})
        request.setdefault("MetadataProperties", {}).setdefault("GeneratedBy", execution.arn)
        response = self._call(execution, "CreateModelPackage", request)
        self._set_step(execution, run, {"Metadata": {"RegisterModel": {"Arn": response["ModelPackageArn"]}}})
        return self._call(execution, "DescribeModelPackage", {"ModelPackageName": response["ModelPackageArn"]})

    def _call(self, execution: Execution, operation: str, request: Request) -> dict[str, Any]:
        """Call SageMaker as the pipeline's role, over its own API. Raises StepFailed."""
        try:
            validate(operation, request)
            client = self._client(execution)
            response: dict[str, Any] = getattr(client, botocore.xform_name(operation))(**request)
        except ValidationException as error:
            raise StepFailed(f"ClientError: {error.message} (request of sagemaker:{operation})") from None
        except identity.RoleError as error:
            raise StepFailed(f"ClientError: {error}") from None
        except (ClientError, BotoCoreError) as error:
            raise StepFailed(
                f"ClientError: Failed to invoke sagemaker:{operation}. Error Details: {error}", _fault_of_error(error)
            ) from None
        response.pop("ResponseMetadata", None)
        return response

    def _client(self, execution: Execution) -> Any:
        settings = self._service.settings
        credentials = identity.assume(execution.role, PRINCIPAL, execution.name)
        with self._botocore_lock:
            return boto3.Session(botocore_session=self._botocore).client(
                "sagemaker",
                region_name=settings.region,
                endpoint_url=settings.url,
                aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
                aws_session_token=credentials["AWS_SESSION_TOKEN"],
                config=Config(retries={"total_max_attempts": 1}),  # the step's own retry policies decide
            )

    def _stop_job(self, execution: Execution, job: tuple[Kind, str]) -> None:
        kind, name = job
        try:
            self._call(execution, f"Stop{kind}Job", {f"{kind}JobName": name})
        except StepFailed as failure:
            log.info("%s was not stopped; it may have ended before: %s", name, failure)

    def _resource_name(self, execution: Execution, run: StepRun) -> str:
        """`pipelines-<execution>-<step>-<random>`, at most 63 characters, as the service names what a step makes."""
        start = f"pipelines-{execution.variables['PipelineExecutionId']}-{run.name}".replace("_", "-")
        return f"{start[:52].rstrip('-')}-{random_id(10)}"

    def _context(self, execution: Execution) -> expressions.Context:
        with self._service.changed:
            steps = dict(execution.properties)
        stamp = now().isoformat(timespec="milliseconds").replace("+00:00", "Z")

        def text_at(uri: str) -> str:
            try:
                return self._store.read(uri, caller=Caller(execution.role, execution.name)).decode()
            except (ObjectStoreError, UnicodeDecodeError) as error:
                raise ExpressionError(f"cannot read {uri}: {error}") from None

        def property_file(step: str, name: str) -> str:
            definition = next(
                item for item in pipeline_definition.all_steps(execution.definition["Steps"]) if item["Name"] == step
            )
            file = next(item for item in definition["PropertyFiles"] if item["PropertyFileName"] == name)
            if step not in steps:
                raise ExpressionError(f"property file '{name}': step '{step}' has not succeeded (yet)")
            output = expressions.follow(
                steps[step], f"ProcessingOutputConfig.Outputs['{file['OutputName']}'].S3Output.S3Uri", f"step '{step}'"
            )
            return text_at(f"{output.rstrip('/')}/{file['FilePath']}")

        return expressions.Context(
            parameters=execution.parameters,
            execution={**execution.variables, "CurrentDateTime": stamp},
            steps=steps,
            property_file=property_file,
            s3_text=text_at,
        )

    # ------------------------------------------------------------------ retries and cache

    def _with_retries(
        self, execution: Execution, run: StepRun, attempt: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Run an attempt, again as often as the step's retry policies say for what went wrong."""
        started, used = time.monotonic(), [0] * len(run.step.get("RetryPolicies", []))
        while True:
            try:
                return attempt()
            except StepFailed as failure:
                place = next(
                    (
                        place
                        for place, policy in enumerate(run.step.get("RetryPolicies", []))
                        if failure.fault in policy["ExceptionType"]
                    ),
                    None,
                )
                if place is None or failure.fault is None:
                    raise
                policy = run.step["RetryPolicies"][place]
                wait = policy.get("IntervalSeconds", 1) * policy.get("BackoffRate", 2.0) ** used[place]
                minutes = policy.get("ExpireAfterMin")
                expired = minutes is not None and time.monotonic() + wait > started + 60 * minutes
                if expired or used[place] >= policy.get("MaxAttempts", 5 if minutes is None else float("inf")):
                    raise
                used[place] += 1
            with self._service.changed:
                if self._service.changed.wait_for(lambda: execution.stop_requested or self._closed, timeout=wait):
                    raise StepStopped
            self._set_step(execution, run, {"AttemptCount": run.record["AttemptCount"] + 1})

    def _cache_key(self, execution: Execution, run: StepRun, arguments: Request) -> tuple[str, str]:
        kept = {key: arguments.get(key) for key in CACHE_KEYS[run.step["Type"]]}
        text = json.dumps([run.name, run.step["Type"], kept], sort_keys=True, default=str)
        return execution.record["PipelineArn"], hashlib.sha256(text.encode()).hexdigest()

    def _cached(self, execution: Execution, run: StepRun, arguments: Request) -> dict[str, Any] | None:
        """The properties of an earlier run of this step with the same arguments, if the step wants it and it is young enough."""
        cache = run.step.get("CacheConfig", {})
        if not cache.get("Enabled") or run.step["Type"] not in CACHE_KEYS:
            return None
        with self._service.changed:
            hit = self.cache.get(self._cache_key(execution, run, arguments))
        if hit is None:
            return None
        ended, source, properties, metadata = hit
        if "ExpireAfter" in cache and ended + duration(cache["ExpireAfter"]) < now():
            return None
        self._set_step(execution, run, {"CacheHitResult": {"SourcePipelineExecutionArn": source}, "Metadata": metadata})
        return copy.deepcopy(properties)

    def _remember(self, execution: Execution, run: StepRun, arguments: Request, properties: dict[str, Any]) -> None:
        if run.step["Type"] in CACHE_KEYS:
            with self._service.changed:
                key = self._cache_key(execution, run, arguments)
                self.cache[key] = (
                    now(),
                    execution.arn,
                    copy.deepcopy(properties),
                    copy.deepcopy(run.record["Metadata"]),
                )

    # ------------------------------------------------------------------ status and events

    def _set_execution_status(self, execution: Execution, status: str) -> None:
        with self._service.changed:
            execution.record.update(PipelineExecutionStatus=status, LastModifiedTime=now())
            self._service.changed.notify_all()

    def _set_step(self, execution: Execution, run: StepRun, fields: dict[str, Any]) -> None:
        with self._service.changed:
            before = run.status
            if run.status == "Stopping" and fields.get("StepStatus") == "Executing":
                fields = {key: value for key, value in fields.items() if key != "StepStatus"}
            run.record.update(fields)
            self._service.changed.notify_all()
        if run.status != before:
            self._emit_step(execution, run, before)

    def _emit_execution(self, execution: Execution, before: str | None) -> None:
        record = execution.record
        ended = record["PipelineExecutionStatus"] not in ("Executing", "Stopping")
        detail = {
            "pipelineArn": record["PipelineArn"],
            "pipelineExecutionArn": execution.arn,
            "pipelineExecutionDescription": record.get("PipelineExecutionDescription", ""),
            "pipelineExecutionDisplayName": record["PipelineExecutionDisplayName"],
            "currentPipelineExecutionStatus": record["PipelineExecutionStatus"],
            **({"previousPipelineExecutionStatus": before} if before else {}),
            "executionStartTime": _event_time(record["CreationTime"]),
            **({"executionEndTime": _event_time(record["LastModifiedTime"])} if ended else {}),
            **({"failureReason": record["FailureReason"]} if "FailureReason" in record else {}),
        }
        self._service.emit("SageMaker Model Building Pipeline Execution Status Change", detail, execution.arn)

    def _emit_step(self, execution: Execution, run: StepRun, before: str | None) -> None:
        with self._service.changed:
            record = copy.deepcopy(run.record)
        detail = {
            "metadata": _lower_first(record.get("Metadata", {})),
            **({"cacheHitResult": _lower_first(record["CacheHitResult"])} if "CacheHitResult" in record else {}),
            **({"failureReason": record["FailureReason"]} if "FailureReason" in record else {}),
            "stepName": run.name,
            "stepType": run.step["Type"],
            "stepStartTime": _event_time(record["StartTime"]),
            **({"stepEndTime": _event_time(record["EndTime"])} if "EndTime" in record else {}),
            "currentStepStatus": record["StepStatus"],
            **({"previousStepStatus": before} if before else {}),
            "pipelineArn": execution.record["PipelineArn"],
            "pipelineExecutionArn": execution.arn,
        }
        self._service.emit("SageMaker Model Building Pipeline Execution Step Status Change", detail, execution.arn)


def duration(text: str) -> datetime.timedelta:
    """An ISO 8601 duration; the leading P may be missing, as in AWS's examples ("30d", "T16m"). A year has 365 days, a month 30.

    Raises StepFailed if it is none.
    """
    units = r"(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?"
    match = re.fullmatch(f"P?{units}", text, re.IGNORECASE)
    if match is None or not any(match.groups()):
        raise StepFailed(
            f"ClientError: CacheConfig.ExpireAfter '{text}' is not an ISO 8601 duration such as P30D or PT12H"
        )
    years, months, weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return datetime.timedelta(
        days=365 * years + 30 * months + 7 * weeks + days, hours=hours, minutes=minutes, seconds=seconds
    )


def _as_text(arguments: Request) -> Request:
    """Hyperparameters, environment values and container arguments become strings, as the service does after evaluation."""

    def texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: expressions.to_text(member) for name, member in value.items()}
        return [expressions.to_text(member) for member in value]

    changed: Request = {}
    for field in ("HyperParameters", "Environment"):
        if field in arguments:
            changed[field] = texts(arguments[field])
    for field in ("AppSpecification", "AlgorithmSpecification"):
        if field in arguments:
            commands = {
                key: texts(arguments[field][key])
                for key in ("ContainerEntrypoint", "ContainerArguments")
                if key in arguments[field]
            }
            changed[field] = {**arguments[field], **commands}
    return {**arguments, **changed}


def _fault_of_reason(reason: str) -> str | None:
    """What retry policies call the reason why a job failed."""
    kinds = {
        "InternalServerError": "SageMaker.JOB_INTERNAL_ERROR",
        "CapacityError": "SageMaker.CAPACITY_ERROR",
        "ResourceLimitExceeded": "SageMaker.RESOURCE_LIMIT",
    }
    return next((fault for start, fault in kinds.items() if reason.startswith(start)), None)


def _fault_of_error(error: Exception) -> str | None:
    """What retry policies call an error of the SageMaker API."""
    if not isinstance(error, ClientError):
        return "Step.SERVICE_FAULT"  # no answer at all
    code = error.response["Error"]["Code"]
    if code in THROTTLING_CODES:
        return "Step.THROTTLING"
    if code == "ResourceLimitExceeded":
        return "SageMaker.RESOURCE_LIMIT"
    return "Step.SERVICE_FAULT" if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500 else None


def _event_time(time_: datetime.datetime) -> str:
    return time_.strftime("%Y-%m-%dT%H:%M:%SZ")


def _lower_first(value: Any) -> Any:
    if isinstance(value, dict):
        return {name[:1].lower() + name[1:]: _lower_first(member) for name, member in value.items()}
    return value
