"""A JumpStart model's hub document as this repository keeps it: config/jumpstart/<model>.json, its lock file.

`finetune jumpstart lookup` writes it from DescribeHubContent, so that a synth asks nobody and two synths agree. It holds
the parts of the document that a training needs, under the document's own names, and the digest of the whole.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
FOLDER = Path(__file__).parent / "jumpstart"
PUBLIC_HUB = "SageMakerPublicHub"

# Of the document, in its own names. Without the first ones there is no training.
NEEDED = ("Hyperparameters", "TrainingArtifactUri", "TrainingEcrUri", "TrainingScriptUri", "TrainingSupported")
USED = (
    *NEEDED,
    "DefaultTrainingInstanceType",
    "DisableOutputCompression",
    "EncryptInterContainerTraffic",
    "HostingEulaUri",
    "License",
    "MaxRuntimeInSeconds",
    "SupportedTrainingInstanceTypes",
    "TrainingEnableNetworkIsolation",
    "TrainingInstanceTypeVariants",
    "TrainingMetrics",
    "TrainingPrepackedScriptUri",
    "TrainingVolumeSize",
)
DEFAULT_MAX_RUNTIME_SECONDS = 360_000  # of JumpStart's language models; SageMaker's own default of a day is too short
# The data's own: PrepareData has acted on the configuration's dataset group, and the training is told what it did.
OF_THE_DATA = {
    "instruction_tuned": "dataset.tuning_mode, or the parameter TuningMode",
    "chat_dataset": "dataset.tuning_mode, or the parameter TuningMode",
    "add_input_output_demarcation_key": "dataset.add_input_output_demarcation_key",
    "validation_split_ratio": "dataset.validation_split_ratio",
    "train_data_split_seed": "dataset.train_data_split_seed",
    "max_train_samples": "dataset.max_train_samples",
    "max_val_samples": "dataset.max_val_samples",
}
DEFAULT_MAX_INPUT_LENGTH = 1024  # tokens that JumpStart's script takes with max_input_length -1


class LockError(ValueError):
    """A lock file that is missing, of another model or region, or damaged; or values that its document refuses."""


@dataclass(frozen=True)
class Hyperparameter:
    """One of the document's: `scope` algorithm is for the user, container for the image."""

    name: str
    type: str
    default: str
    scope: str
    low: float
    high: float
    options: tuple[str, ...]

    def problem(self, text: str) -> str | None:
        """What is wrong with a value, or None; by JumpStart's own rules."""
        if self.options and text not in self.options:
            return f"hyperparameter {self.name} is {text!r}, allowed: {', '.join(self.options)}"
        if self.type == "bool" and text.lower() not in ("true", "false"):
            return f"hyperparameter {self.name} is {text!r}, allowed: True, False"
        if self.type in ("int", "float"):
            kind = "a whole number" if self.type == "int" else "a number"
            try:
                value = int(text) if self.type == "int" else float(text)
            except ValueError:
                # "None" stands for no number where the document itself has it as the default.
                return (
                    None
                    if text == self.default
                    else f"hyperparameter {self.name} is {text!r}, allowed: {kind}{self._range}"
                )
            if not math.isfinite(value) or not self.low <= value <= self.high:
                return f"hyperparameter {self.name} is {text!r}, allowed: {kind}{self._range}"
        return None

    @property
    def _range(self) -> str:
        below = f" from {self.low:g}" if self.low > -math.inf else ""
        return below + (f" to {self.high:g}" if self.high < math.inf else "")


@dataclass(frozen=True)
class Lock:
    """`document` is USED of the hub document, `digest` is the SHA-256 of all of it as it came."""

    model_id: str
    version: str
    region: str
    hub_content_arn: str
    digest: str
    document: dict[str, Any]

    def for_instance(self, instance_type: str) -> dict[str, Any]:
        """What the document has for this instance type beside or instead of its general part: a variant's Properties."""
        variants = self.document.get("TrainingInstanceTypeVariants") or {}
        family = instance_type.rsplit(".", 1)[0].removeprefix("ml.")
        found: dict[str, Any] = {}
        for name in (family, f"ml.{family}", instance_type):
            found |= variants.get("Variants", {}).get(name, {}).get("Properties", {})
        aliases = variants.get("Aliases") or {}
        return {key: aliases.get(value[1:], value) if _is_alias(value) else value for key, value in found.items()}

    def image_uri(self, instance_type: str) -> str:
        return str(self.for_instance(instance_type).get("ImageUri") or self.document["TrainingEcrUri"])

    def model_uri(self, instance_type: str) -> str:
        """Where the training gets its weights."""
        variant = self.for_instance(instance_type)
        return str(variant.get("GatedModelEnvVarUri") or variant.get("TrainingArtifactUri") or self.artifact_uri)

    @property
    def artifact_uri(self) -> str:
        return str(self.document["TrainingArtifactUri"])

    @property
    def script_uri(self) -> str:
        """The training script with its packages in it, where there is one: a job in isolation cannot fetch them."""
        return str(self.document.get("TrainingPrepackedScriptUri") or self.document["TrainingScriptUri"])

    @property
    def licence(self) -> str | None:
        return self.document.get("License")

    @property
    def eula_uri(self) -> str | None:
        return self.document.get("HostingEulaUri")

    @property
    def metric_definitions(self) -> list[dict[str, str]]:
        return [{"Name": one["Name"], "Regex": one["Regex"]} for one in self.document.get("TrainingMetrics") or []]

    @property
    def max_runtime_seconds(self) -> int:
        return int(self.document.get("MaxRuntimeInSeconds") or DEFAULT_MAX_RUNTIME_SECONDS)

    def hyperparameters(self, instance_type: str) -> dict[str, Hyperparameter]:
        """By name; an instance type's own take the place of the general ones."""
        own = self.for_instance(instance_type).get("Hyperparameters") or []
        return {entry["Name"]: _hyperparameter(entry) for entry in [*self.document["Hyperparameters"], *own]}

    def values(self, chosen: Mapping[str, object], instance_type: str) -> dict[str, str]:
        """All hyperparameters as texts: the document's defaults, and `chosen` over them.

        Raises LockError naming every unknown name and every value that the document refuses.
        """
        known = self.hyperparameters(instance_type)
        texts = {name: str(value) for name, value in chosen.items()}
        problems = [
            f"hyperparameter {name!r} (value {text!r}) is unknown to {self.model_id} {self.version}; known: "
            + ", ".join(sorted(one.name for one in known.values() if one.scope == "algorithm"))
            for name, text in texts.items()
            if name not in known or known[name].scope != "algorithm"
        ]
        problems += [
            problem for name, text in texts.items() if name in known and (problem := known[name].problem(text))
        ]
        if texts.get("instruction_tuned") == "True" == texts.get("chat_dataset"):
            problems.append("instruction_tuned and chat_dataset are both True; a dataset is one of them")
        if problems:
            raise LockError("\n".join(problems))
        return {**{name: one.default for name, one in known.items()}, **texts}

    def check_instance_type(self, instance_type: str) -> None:
        """Raises LockError unless the document lists the type; a document without a list takes any."""
        supported = self.document.get("SupportedTrainingInstanceTypes") or []
        if supported and instance_type not in supported:
            raise LockError(
                f"{self.model_id} {self.version} is not trained on {instance_type!r}; allowed: {', '.join(supported)} "
                "(training.instance_type)"
            )

    def instance_types_like(self, instance_type: str) -> list[str]:
        """The supported types for which the document says the same as for this one, itself among them."""
        supported = self.document.get("SupportedTrainingInstanceTypes") or [instance_type]
        own = self.for_instance(instance_type)
        return [one for one in supported if self.for_instance(one) == own]

    def check_eula(self, accepted: bool) -> None:
        """Raises LockError if there is a licence agreement to accept and it is not, or none and it is."""
        if self.eula_uri and not accepted:
            raise LockError(
                f"{self.model_id} has an end-user licence agreement: read {self.eula_uri}, then accept it with "
                "jumpstart.accept_eula: true in the configuration (import-model: --accept-eula)"
            )
        if accepted and not self.eula_uri:
            raise LockError(
                f"{self.model_id} {self.version} has no end-user licence agreement that could be accepted (its licence: "
                f"{self.licence or 'not told'}); remove accept_eula"
            )

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **vars(self)}, indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Training:
    """What a deployment trains with JumpStart: its lock, its instance type, and all hyperparameters as texts."""

    lock: Lock
    instance_type: str
    values: dict[str, str]

    @property
    def max_input_length(self) -> int:
        """Tokens of a row that JumpStart's script does not cut."""
        chosen = int(self.values.get("max_input_length", "-1"))
        return chosen if chosen > 0 else DEFAULT_MAX_INPUT_LENGTH

    def takes_whole_numbers(self, name: str) -> bool:
        return self.lock.hyperparameters(self.instance_type)[name].type == "int"

    def options(self, name: str) -> list[str]:
        return list(self.lock.hyperparameters(self.instance_type)[name].options)

    def check(self, changed: Mapping[str, str]) -> None:
        """Raises LockError if the document refuses hyperparameters that are `changed` at the start of an execution."""
        self.lock.values(changed, self.instance_type)


def training_of(settings: Any) -> Training:
    """What `settings`, whose backend is JumpStart, train with. Raises LockError with all that does not fit."""
    group, training = settings.jumpstart, settings.training
    lock = of(settings)
    lock.check_eula(group.accept_eula)
    default = lock.document.get("DefaultTrainingInstanceType")
    instance_type = (
        training.instance_type if "instance_type" in training.model_fields_set else default or training.instance_type
    )
    lock.check_instance_type(instance_type)
    elsewhere = [
        f"jumpstart.hyperparameters.{name}: this is a matter of the data; set {where}"
        for name, where in OF_THE_DATA.items()
        if name in group.hyperparameters
    ]
    if training.spot:
        elsewhere.append("training.spot: JumpStart's script is not known to go on from checkpoints; set spot: false")
    if elsewhere:
        raise LockError("\n".join(elsewhere))
    values = lock.values(group.hyperparameters, instance_type)
    # Nothing is held out, dropped or put between prompt and completion a second time.
    prepared = {"add_input_output_demarcation_key": "False", "max_train_samples": "-1", "max_val_samples": "-1"}
    return Training(
        lock, instance_type, {**values, **{name: text for name, text in prepared.items() if name in values}}
    )


def preparation_flags(settings: Any) -> list[str]:
    """PrepareData's flags for a training by either backend that no run-time parameter changes."""
    if settings.backend != "jumpstart":
        return list(settings.training.preparation_flags())
    training = settings.training
    estimate = {"tokens_per_second": training.tokens_per_second, "usd_per_hour": training.usd_per_hour}
    flags = ["--backend", "jumpstart", "--max_input_length", str(training_of(settings).max_input_length)]
    return flags + [part for name, value in estimate.items() if value is not None for part in (f"--{name}", str(value))]


def path_of(model_id: str, lock: str | None) -> Path:
    """Where the lock file of a model is: `lock`, if the configuration names it, else its place in FOLDER."""
    return Path(lock) if lock else FOLDER / f"{model_id}.json"


def of(settings: Any, model_id: str | None = None) -> Lock:
    """The lock of a deployment's JumpStart model, or of another `model_id`. Raises LockError, as `read` does."""
    group = settings.jumpstart
    wanted = model_id or group.model_id
    lock = group.lock if group is not None and group.model_id == wanted else None
    return read(path_of(wanted, lock), wanted, settings.region)


def read(path: Path, model_id: str, region: str) -> Lock:
    """The lock in `path`. Raises LockError if it is missing, damaged, or of another model, region or form."""
    again = f"run 'finetune jumpstart lookup {model_id}' with the credentials of an account"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LockError(f"there is no lock file {path} of JumpStart's model {model_id}; {again}") from None
    except ValueError as error:
        raise LockError(f"the lock file {path} is not valid JSON ({error}); {again}") from None
    if not isinstance(content, dict) or content.pop("schema_version", None) != SCHEMA_VERSION:
        raise LockError(f"the lock file {path} has another form than this version reads ({SCHEMA_VERSION}); {again}")
    try:
        lock = Lock(**content)
    except TypeError as error:
        raise LockError(f"the lock file {path} is damaged ({error}); {again}") from None
    problems = [
        f"its {what} is {found!r}, the configuration's {wanted!r}"
        for what, found, wanted in (("model", lock.model_id, model_id), ("region", lock.region, region))
        if found != wanted
    ]
    if problems:
        raise LockError(f"the lock file {path} is stale: {'; '.join(problems)}; {again}")
    return lock


def from_document(model_id: str, version: str, region: str, arn: str, document: dict[str, Any], digest: str) -> Lock:
    """The lock of a hub document as it came. Raises LockError if the model cannot be trained with what it says."""
    missing = [name for name in NEEDED if not document.get(name)]
    if missing:
        raise LockError(
            f"JumpStart's {model_id} {version} cannot be fine-tuned: its document has no {', '.join(missing)}"
        )
    return Lock(model_id, version, region, arn, digest, {name: document[name] for name in USED if name in document})


def _hyperparameter(entry: Mapping[str, Any]) -> Hyperparameter:
    options = tuple(str(option) for option in entry.get("Options") or ())
    low, high = entry.get("Min"), entry.get("Max")
    return Hyperparameter(
        entry["Name"],
        entry["Type"],
        str(entry["Default"]),
        entry.get("Scope", "algorithm"),
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
        options,
    )


def _is_alias(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("$")
