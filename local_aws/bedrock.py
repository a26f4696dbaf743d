"""Bedrock's custom model import: jobs that read a model with their role and look at it as Bedrock documents it.

What was imported is listed, described and deleted; nothing here answers for it, so a request to it is refused by name. The
rest of Bedrock is moto's.
"""

import datetime
import functools
import json
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
from botocore.model import ServiceModel
from moto.bedrock.exceptions import BedrockClientError
from moto.bedrock.responses import BedrockResponse
from moto.bedrockruntime.responses import BedrockRuntimeResponse
from moto.core.responses import ActionResult
from moto.core.utils import camelcase_to_underscores

from local_aws import identity, request_actions
from local_aws.authorization import Caller
from local_aws.object_store import ObjectStore, ObjectStoreError
from local_aws.sagemaker_api import (
    ConflictException,
    Request,
    ResourceNotFound,
    Response,
    ServiceError,
    UnsupportedOperation,
    ValidationException,
    now,
    random_id,
    validate_shape,
)
from local_aws.settings import Settings

PRINCIPAL = "bedrock.amazonaws.com"
IMPORT_SECONDS = 60.0  # minutes, on AWS
# What the user guide's page on custom model import names, as config.json spells it.
ARCHITECTURES = frozenset(
    (
        "GPTBigCodeForCausalLM", "GptOssForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM",
        "MllamaForConditionalGeneration", "Qwen2ForCausalLM", "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "T5ForConditionalGeneration",
    )
)  # fmt: skip
NEEDED = ("config.json", "tokenizer_config.json")
WEIGHT_TYPES = ("F32", "F16", "BF16")
LARGEST_HEADER_BYTES = 100_000_000  # of a safetensors file: the format's own limit
OPERATIONS = (
    "CreateModelImportJob",
    "GetModelImportJob",
    "ListModelImportJobs",
    "GetImportedModel",
    "ListImportedModels",
    "DeleteImportedModel",
)


class ImportFailed(Exception):
    """The model cannot be imported; the message is the job's."""


@dataclass
class Job:
    """An import job and, once it is completed, the ARN of its model."""

    arn: str
    request: Request
    created: datetime.datetime
    ends: datetime.datetime
    status: str = "InProgress"
    failure: str | None = None
    model: str | None = None


@dataclass
class Model:
    arn: str
    job: Job
    architecture: str
    instruct: bool
    created: datetime.datetime
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.job.request["importedModelName"])


class Imports:
    """The import jobs and imported models of this server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = ObjectStore(settings)
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._models: dict[str, Model] = {}

    # ---------------------------------------------------------------- jobs

    def create_model_import_job(self, request: Request) -> Response:
        with self._lock:
            token = request.get("clientRequestToken")
            for job in self._jobs.values():
                if token and job.request.get("clientRequestToken") == token:
                    if job.request != request:
                        raise ConflictException(f"The clientRequestToken {token} was used with another request")
                    return {"jobArn": job.arn}
            self._settle()
            if any(job.request["jobName"] == request["jobName"] for job in self._jobs.values()):
                raise ConflictException(f"There is a model import job with the name {request['jobName']} already")
            if any(model.name == request["importedModelName"] for model in self._models.values()):
                raise ConflictException(
                    f"There is an imported model with the name {request['importedModelName']} already"
                )
            if "vpcConfig" in request:
                raise ValidationException("vpcConfig is not implemented by local AWS")
            try:
                identity.check(request["roleArn"], PRINCIPAL)
            except identity.RoleError as error:
                raise ValidationException(f"Could not assume provided IAM role {request['roleArn']}: {error}") from None
            started = now()
            wait = datetime.timedelta(seconds=IMPORT_SECONDS / self._settings.time_factor)
            job = Job(self._arn("model-import-job"), request, started, started + wait)
            self._jobs[job.arn] = job
            return {"jobArn": job.arn}

    def get_model_import_job(self, request: Request) -> Response:
        with self._lock:
            self._settle()
            wanted = request["jobIdentifier"]
            job = next((one for one in self._jobs.values() if wanted in (one.arn, one.request["jobName"])), None)
            if job is None:
                raise ResourceNotFound(f"There is no model import job {wanted}")
            more = {"importedModelKmsKeyArn": job.request.get("importedModelKmsKeyId"), "failureMessage": job.failure}
            asked = {name: job.request[name] for name in ("roleArn", "modelDataSource")}
            return {**_summary(job), **asked, **{name: value for name, value in more.items() if value is not None}}

    def list_model_import_jobs(self, request: Request) -> Response:
        with self._lock:
            self._settle()
            jobs = [_summary(job) for job in self._jobs.values()]
        return _page(jobs, request, "modelImportJobSummaries", "jobName")

    # ---------------------------------------------------------------- models

    def get_imported_model(self, request: Request) -> Response:
        with self._lock:
            self._settle()
            model = self._model(request["modelIdentifier"])
            asked = model.job.request
            key = asked.get("importedModelKmsKeyId")
            return {
                **_described(model),
                "jobName": asked["jobName"],
                "jobArn": model.job.arn,
                "modelDataSource": asked["modelDataSource"],
                **({"modelKmsKeyArn": key} if key else {}),
            }

    def list_imported_models(self, request: Request) -> Response:
        with self._lock:
            self._settle()
            models = [_described(model) for model in self._models.values()]
        return _page(models, request, "modelSummaries", "modelName")

    def delete_imported_model(self, request: Request) -> Response:
        with self._lock:
            del self._models[self._model(request["modelIdentifier"]).arn]
        return {}

    def tags(self, identifier: str) -> dict[str, str]:
        """Tags of an imported model; none if there is no such model."""
        with self._lock:
            found = (model.tags for model in self._models.values() if identifier in (model.arn, model.name))
            return next(found, {})

    def _model(self, identifier: str) -> Model:
        for model in self._models.values():
            if identifier in (model.arn, model.name):
                return model
        raise ResourceNotFound(f"There is no imported model {identifier}")

    # ---------------------------------------------------------------- the import itself

    def _settle(self) -> None:
        """End the jobs whose time has come."""
        for job in self._jobs.values():
            if job.status != "InProgress" or now() < job.ends:
                continue
            try:
                architecture, instruct = self._examined(job)
            except (ImportFailed, ObjectStoreError) as error:
                job.status, job.failure = "Failed", str(error)[:2048]
                continue
            tags = {tag["key"]: tag["value"] for tag in job.request.get("importedModelTags", [])}
            model = Model(self._arn("imported-model"), job, architecture, instruct, now(), tags)
            self._models[model.arn] = model
            job.status, job.model = "Completed", model.arn

    def _examined(self, job: Job) -> tuple[str, bool]:
        """The model's architecture, and whether it takes messages. Raises ImportFailed, ObjectStoreError."""
        caller = Caller(job.request["roleArn"], job.request["jobName"])
        source = job.request["modelDataSource"]["s3DataSource"]["s3Uri"]
        with tempfile.TemporaryDirectory(dir=self._settings.root) as scratch:
            folder = Path(scratch)
            self._store.download(source, folder, caller=caller)
            missing = [name for name in NEEDED if not (folder / name).is_file()]
            weights = sorted(folder.glob("*.safetensors"))
            if missing or not weights:
                raise ImportFailed(f"{source} lacks {', '.join([*missing, *([] if weights else ['*.safetensors'])])}")
            architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures", [])
            if len(architectures) != 1 or architectures[0] not in ARCHITECTURES:
                raise ImportFailed(f"Unsupported model architecture {', '.join(architectures) or '(none)'}")
            for path in weights:
                _check_weights(path)
            tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            return architectures[0], "chat_template" in tokenizer or bool(list(folder.glob("chat_template.*")))

    def _arn(self, resource: str) -> str:
        return f"arn:aws:bedrock:{self._settings.region}:{self._settings.account}:{resource}/{random_id(12)}"


def _check_weights(path: Path) -> None:
    """Raise ImportFailed unless the file is one of safetensors with weights of a type that Bedrock takes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, LARGEST_HEADER_BYTES)))
            types = {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ImportFailed(f"{path.name} is no file of safetensors") from None
    if not types <= set(WEIGHT_TYPES):
        raise ImportFailed(f"{path.name} has weights of {', '.join(sorted(types))}; allowed: {', '.join(WEIGHT_TYPES)}")


def _summary(job: Job) -> dict[str, Any]:
    ended = {"endTime": job.ends} if job.status != "InProgress" else {}
    model = {"importedModelArn": job.model} if job.model else {}
    return {
        "jobArn": job.arn,
        "jobName": job.request["jobName"],
        "importedModelName": job.request["importedModelName"],
        "status": job.status,
        "creationTime": job.created,
        "lastModifiedTime": job.ends if ended else job.created,
        **ended,
        **model,
    }


def _described(model: Model) -> dict[str, Any]:
    return {
        "modelArn": model.arn,
        "modelName": model.name,
        "creationTime": model.created,
        "modelArchitecture": model.architecture,
        "instructSupported": model.instruct,
    }


def _page(items: list[dict[str, Any]], request: Request, key: str, name: str) -> Response:
    """What a List operation answers: filtered, in the order of time, a page of it."""
    unknown = request.keys() - {"nameContains", "statusEquals", "sortBy", "sortOrder", "maxResults", "nextToken"}
    if unknown:
        raise ValidationException(f"{', '.join(sorted(unknown))} is not implemented by local AWS")
    kept = [
        item
        for item in items
        if request.get("nameContains", "") in item[name] and request.get("statusEquals") in (None, item.get("status"))
    ]
    kept.sort(key=lambda item: item["creationTime"], reverse=request.get("sortOrder", "Descending") == "Descending")
    start = int(request.get("nextToken") or 0)
    end = start + int(request.get("maxResults") or 100)
    return {key: kept[start:end], **({"nextToken": str(end)} if end < len(kept) else {})}


# ---------------------------------------------------------------- over moto's server


def install(settings: Settings) -> None:
    """Make moto's server answer these operations. Call it once, before the server starts."""
    imports = Imports(settings)
    request_actions.imported_model_tags = imports.tags
    for operation in OPERATIONS:
        setattr(BedrockResponse, camelcase_to_underscores(operation), _handler(imports, operation))
    initialize = BedrockResponse.__init__

    def with_parameters(self: Any) -> None:
        initialize(self)
        self.automated_parameter_parsing = True  # identifiers are in paths

    BedrockResponse.__init__ = with_parameters
    invoke = BedrockRuntimeResponse.invoke_model

    def invoke_model(self: Any) -> ActionResult:
        model = str(self._get_param("modelId"))
        if ":imported-model/" in model:
            raise _refusal(
                UnsupportedOperation(f"{model} cannot be asked: local AWS imports models into Bedrock and serves none")
            )
        return invoke(self)

    BedrockRuntimeResponse.invoke_model = invoke_model


def _handler(imports: Imports, operation: str) -> Callable[[BedrockResponse], ActionResult]:
    answer_of: Callable[[Request], Response] = getattr(imports, camelcase_to_underscores(operation))

    def handle(response: BedrockResponse) -> ActionResult:
        request = {name: value for name, value in dict(response.params).items() if value is not None}
        try:
            validate_shape(_service_model().operation_model(operation).input_shape, request)
            return ActionResult(answer_of(request))
        except ServiceError as error:
            raise _refusal(error) from None

    return handle


def _refusal(error: ServiceError) -> BedrockClientError:
    code = {"ResourceNotFound": "ResourceNotFoundException"}.get(error.code, error.code)
    return BedrockClientError(code, error.message)


@functools.cache
def _service_model() -> ServiceModel:
    return botocore.session.Session().get_service_model("bedrock")
