"""`finetune jumpstart`: a model's hub document, looked up once and kept as its lock file."""

import hashlib
import json
from typing import Any

from botocore.exceptions import ClientError

from cli.aws import Deployment
from cli.console import CommandError
from config import jumpstart_lock
from config.settings import Settings

# Parameters of the pipeline that are hyperparameters of the training.
PARAMETERS = {"Epoch": "epoch", "LearningRate": "learning_rate", "PeftType": "peft_type"}


def lookup(deployment: Deployment, model_id: str, version: str | None) -> tuple[jumpstart_lock.Lock, str]:
    """Write the lock file of a model from DescribeHubContent; returns it, and what became of the file.

    Raises CommandError if the hub does not have it, or it cannot be trained.
    """
    settings = deployment.settings
    request = {
        "HubName": jumpstart_lock.PUBLIC_HUB,
        "HubContentType": "Model",
        "HubContentName": model_id,
        **({"HubContentVersion": version} if version else {}),
    }
    try:
        answer = deployment.sagemaker.describe_hub_content(**request)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFound":
            raise
        raise CommandError(
            f"{jumpstart_lock.PUBLIC_HUB} in {settings.region} has no {model_id}{f' {version}' if version else ''}"
            f"{_versions(deployment, model_id)}"
        ) from None
    text = answer["HubContentDocument"]
    try:
        document: dict[str, Any] = json.loads(text)
        lock = jumpstart_lock.from_document(
            model_id,
            answer["HubContentVersion"],
            settings.region,
            answer["HubContentArn"],
            document,
            hashlib.sha256(text.encode()).hexdigest(),
        )
    except ValueError as error:  # a LockError is one
        raise CommandError(f"the document of {model_id} cannot be used: {error}") from None
    group = settings.jumpstart
    path = jumpstart_lock.path_of(model_id, group.lock if group and group.model_id == model_id else None)
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    content = lock.to_json()
    if before == content:
        return lock, f"{path} is up to date"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return lock, f"{path} is {'written' if before is None else 'changed'}; commit it"


def _versions(deployment: Deployment, model_id: str) -> str:
    """The versions that there are of a model, as the end of a sentence."""
    request = {"HubName": jumpstart_lock.PUBLIC_HUB, "HubContentType": "Model", "HubContentName": model_id}
    try:
        found = deployment.sagemaker.list_hub_content_versions(**request)["HubContentSummaries"]
    except ClientError:
        found = []
    versions = ", ".join(one["HubContentVersion"] for one in found)
    return f"; its versions: {versions}" if versions else "; check the model id in JumpStart's list, and the region"


def described(lock: jumpstart_lock.Lock) -> list[str]:
    """What a lock says, a line each, for people."""
    document = lock.document
    types = document.get("SupportedTrainingInstanceTypes") or ["not told"]
    eula = (
        f"has an end-user licence agreement: {lock.eula_uri}" if lock.eula_uri else "has no end-user licence agreement"
    )
    return [
        f"{lock.model_id} {lock.version}: licence {lock.licence or 'not told'}; it {eula}",
        f"image {document['TrainingEcrUri']}",
        f"weights {lock.artifact_uri}",
        f"trained on {', '.join(types)}; by default {document.get('DefaultTrainingInstanceType', 'not told')}",
        f"{len(document['Hyperparameters'])} hyperparameters",
    ]


def check_parameters(settings: Settings, parameters: dict[str, str]) -> None:
    """Raises CommandError if JumpStart's document refuses what an execution is to be started with."""
    if settings.backend != "jumpstart":
        return
    changed = {PARAMETERS[name]: value for name, value in parameters.items() if name in PARAMETERS}
    try:
        training = jumpstart_lock.training_of(settings)
        training.check(changed)
        if "TrainingInstanceType" in parameters:
            training.lock.check_instance_type(parameters["TrainingInstanceType"])
    except jumpstart_lock.LockError as error:
        raise CommandError(f"the execution was not started: {error}") from None
