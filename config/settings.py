"""The settings of one deployment: frozen, typed, checked together before anything is built.

A file under config/ (local.yaml, dev.yaml, prod.yaml, private.yaml) holds values only; this module says what they mean,
in which unit and within which limits. `load` reports every problem of a file at once.
"""

import difflib
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import ErrorDetails

InstanceType = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$")]
ImageUri = Annotated[
    str,
    Field(
        pattern=r"^\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[a-z0-9._/-]+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$",
        description="in Amazon ECR, by tag or by digest",
    ),
]
TuningMode = Literal["instruction", "domain", "chat"]
PersonalDataPolicy = Literal["report", "redact", "fail"]
PrepareEngine = Literal["instances", "ray"]
PeftType = Literal["lora", "None"]
Switch = Literal["auto", "True", "False"]
Backend = Literal["pipeline_steps", "jumpstart"]
ApprovalStatus = Literal["Approved", "PendingManualApproval"]
ReleaseShape = Literal["variant", "inference_components"]
Serve = Literal["merged", "adapter"]
ReleaseTarget = Literal["sagemaker", "bedrock"]
Overlap = Literal["wait", "refuse"]
VpcId = Annotated[str, Field(pattern=r"^(create|vpc-[0-9a-f]{8,17})$")]
SubnetId = Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")]
SecurityGroupId = Annotated[str, Field(pattern=r"^sg-[0-9a-f]{8,17}$")]
AlarmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,254}$")]
Account = Annotated[str, Field(pattern=r"^\d{12}$", description="twelve digits")]
Region = Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")]
PlaceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,15}$")]


# Settings of TrainingSettings that are not FineTune's hyperparameters: whoever trains, they hold.
OF_ANY_TRAINING = {
    "instance_type", "instance_count", "spot", "max_wait_hours", "keep_alive_minutes", "max_runtime_hours", "volume_gb",
    "tokens_per_second", "usd_per_hour",
}  # fmt: skip
# Settings of ReleaseSettings that hold without an endpoint too.
OF_ANY_RELEASE = {"approval_status", "kept_releases", "max_total_tokens", "max_update_minutes", "target"}
BEDROCK_REGIONS = ("eu-central-1", "us-east-1", "us-east-2", "us-west-2")  # those of custom model import
ALARM_PERIOD_SECONDS = 60  # AWS publishes an endpoint's metrics once a minute


class SettingsError(ValueError):
    """A configuration file that cannot be used; the message lists every problem in it."""


class Group(BaseModel):
    """A group of settings: immutable, and an unknown key is an error rather than a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Images(Group):
    """Container images of the AWS Deep Learning Containers, by the versions that the SageMaker SDK resolves."""

    training_transformers_version: str = "5.3.0"
    training_pytorch_version: str = "2.9.0"
    serving_version: str = Field(default="0.36.0", description="DJL LMI (vLLM inside)")
    training_image_uri: ImageUri | None = Field(
        default=None,
        description="image of the jobs instead of AWS's training image: its packages and more, such as mlflow or flash-attn",
    )
    prepare_image_uri: ImageUri | None = Field(
        default=None,
        description="image of PrepareData where it is not the training image: the ray engine needs Ray in it",
    )


class BaseModelSettings(Group):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")] = Field(
        description="folder below base-models/ in the artifact bucket, written by `finetune import-model`"
    )


class DatasetSettings(Group):
    """What is accepted and how rows are divided. Names that JumpStart has mean what they mean there; the test set is ours."""

    tuning_mode: TuningMode = "instruction"
    default_manifest: str = Field(
        default="instruction/dataset.manifest", description="key in the raw bucket used by the schedule and by hand"
    )
    validation_split_ratio: float = Field(default=0.1, gt=0, lt=1)
    test_split_ratio: float = Field(default=0.2, gt=0, lt=1)
    train_data_split_seed: int = Field(default=0, ge=0)
    split_group_column: str | None = Field(
        default=None,
        description="rows with the same value in it stay on one side of the split; default: the same prompt",
    )
    slice_column: str | None = Field(
        default=None, description="evaluation has figures of its own for the rows of each of its values"
    )
    max_train_samples: int = Field(default=-1, ge=-1, description="rows to train on at most; -1: all")
    max_val_samples: int = Field(default=-1, ge=-1, description="rows to validate on at most; -1: all")
    add_input_output_demarcation_key: bool = Field(
        default=False, description="put JumpStart's '### Response:' between prompt and completion of your template"
    )
    max_quarantined_rows: int = Field(
        default=0, ge=0, description="bad rows that are set aside; one more fails the run"
    )
    max_truncated_share: float = Field(
        default=0.01, ge=0, le=1, description="share of the rows that may be longer than training.max_input_length"
    )
    personal_data: PersonalDataPolicy = Field(default="report", description="what to do with it where it is found")

    def flags(self) -> list[str]:
        """PrepareData's flags for these settings; they are named as the fields. What is not set is left out."""
        return _flags(self.model_dump(exclude={"tuning_mode", "default_manifest"}))

    @model_validator(mode="after")
    def leaves_rows_to_train_on(self) -> "DatasetSettings":
        if self.validation_split_ratio + self.test_split_ratio >= 0.9:
            raise ValueError(
                f"validation_split_ratio ({self.validation_split_ratio}) and test_split_ratio ({self.test_split_ratio}) "
                "take 90 % of the rows or more; lower them so that their sum is below 0.9"
            )
        return self


class TrainingSettings(Group):
    """FineTune's instance and hyperparameters. Hyperparameters carry JumpStart's names and meanings."""

    instance_type: InstanceType = "ml.g5.12xlarge"
    instance_count: int = Field(default=1, ge=1, le=64)
    volume_gb: int = Field(default=300, ge=30, le=16384)
    max_runtime_hours: float = Field(default=24, gt=0, le=672)
    spot: bool = Field(
        default=False,
        description="train on spot instances: cheaper, and reclaimed at any time; it goes on from the last checkpoint",
    )
    max_wait_hours: float | None = Field(
        default=None, gt=0, le=672, description="with spot: training and all waiting for instances together"
    )
    keep_alive_minutes: int = Field(
        default=0,
        ge=0,
        le=360,
        description="how long instances wait, and are paid, for a next job (warm pool); 0: none",
    )
    # FineTune's hyperparameters; pipeline_steps/contract/hyperparameters.py says what each means.
    peft_type: PeftType = "lora"
    bits: Literal[4, 16] = Field(default=16, description="of the frozen weights: 4 with peft_type lora is QLoRA")
    lora_r: int = Field(default=16, ge=1, le=1000)
    lora_alpha: int = Field(default=32, ge=1, le=100_000)
    lora_dropout: float = Field(default=0.0, ge=0, le=0.99)
    fp8: bool = Field(default=False, description="LoRA's products with the frozen weights in 8 bits: g6, g6e, p5")
    epoch: float = Field(default=1.0, ge=0.01, le=1000)
    max_steps: int = Field(default=-1, ge=-1, description="optimizer steps; -1: as many as epoch needs")
    max_input_length: int = Field(default=2048, ge=16, le=1_000_000, description="tokens")
    train_on_prompt: bool = Field(default=False, description="also learn to write the prompt, as JumpStart does")
    per_device_train_batch_size: int = Field(default=2, ge=1, le=1000, description="rows")
    gradient_accumulation_steps: int = Field(default=4, ge=1, le=1000)
    seed: int = Field(default=10, ge=1, le=1000)
    learning_rate: float = Field(default=2e-4, ge=1e-8, le=1)
    lr_scheduler_type: Literal["constant_with_warmup", "linear"] = "constant_with_warmup"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=0, ge=0, description="overrides the ratio")
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, ge=1e-16, le=1)
    max_grad_norm: float = Field(default=1.0, ge=1e-6, le=1e6)
    gradient_checkpointing: Switch = Field(default="auto", description="auto: as little again as the memory allows")
    evaluation_strategy: Literal["steps", "epoch", "no"] = "steps"
    eval_steps: int = Field(default=0, ge=0, description="0: computed from the number of steps")
    early_stopping_patience: int = Field(default=3, ge=1, description="evaluations without improvement")
    early_stopping_threshold: float = Field(default=0.0, ge=0, description="nats per token that count as improvement")
    load_best_model_at_end: bool = True
    save_steps: int = Field(default=0, ge=0, description="0: computed from what saving takes")
    save_total_limit: int = Field(default=1, ge=1, le=1000, description="checkpoints kept")
    logging_steps: int = Field(default=1, ge=1, le=1000)
    max_hours: float = Field(default=0.0, ge=0, le=10_000, description="training ends then with its best; 0: no limit")
    max_cost_usd: float = Field(default=0.0, ge=0, description="the same by the instances' price; 0: no limit")
    mlflow_tracking_uri: str = Field(
        default="",
        pattern=r"^(|arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(tracking-server|app)/.+|/.+)$",
        description="ARN of a SageMaker MLflow server or app, or a folder in the container; empty: no tracking",
    )
    tokens_per_second: float | None = Field(
        default=None, gt=0, description="of all instances together, for the estimate of time and cost; default: assumed"
    )
    usd_per_hour: float | None = Field(default=None, gt=0, description="price of one instance; default: a table")

    def preparation_flags(self) -> list[str]:
        """PrepareData's flags for what no run-time parameter changes; they are named as the fields."""
        of_the_memory = {"bits", "lora_r", "gradient_checkpointing", "max_input_length"}
        return _flags(self.model_dump(include=of_the_memory | {"tokens_per_second", "usd_per_hour"}))

    @property
    def mlflow_server(self) -> str | None:
        """ARN of the MLflow server or app that the training talks to over the network."""
        return self.mlflow_tracking_uri if self.mlflow_tracking_uri.startswith("arn:") else None

    @model_validator(mode="after")
    def only_frozen_weights_are_stored_in_fewer_bits(self) -> "TrainingSettings":
        if self.peft_type == "None" and self.bits == 4:
            raise ValueError(
                "bits is 4 and peft_type is 'None': weights in 4 bits cannot be trained; use peft_type: lora, or bits: 16"
            )
        if self.fp8 and (self.peft_type, self.bits) != ("lora", 16):
            raise ValueError(
                f"fp8 is true with peft_type {self.peft_type!r} and bits {self.bits}: only frozen weights in 16 bits are "
                "rounded to 8; use peft_type: lora and bits: 16, or fp8: false"
            )
        return self

    @model_validator(mode="after")
    def spot_instances_may_be_waited_for_and_are_not_kept(self) -> "TrainingSettings":
        if not self.spot:
            if self.max_wait_hours is not None:
                raise ValueError(
                    f"max_wait_hours is {self.max_wait_hours} but spot is false; only spot instances are waited for: "
                    "remove it or set spot: true"
                )
            return self
        if self.max_wait_hours is None or self.max_wait_hours < self.max_runtime_hours:
            raise ValueError(
                f"spot is true, max_wait_hours is {self.max_wait_hours} and max_runtime_hours is "
                f"{self.max_runtime_hours}; the wait holds the runtime: set max_wait_hours to {self.max_runtime_hours} or more"
            )
        if self.keep_alive_minutes:
            raise ValueError(
                f"spot is true and keep_alive_minutes is {self.keep_alive_minutes}; SageMaker keeps no spot instances: "
                "set one of them only"
            )
        return self


class ProcessingSettings(Group):
    """Instances of the processing jobs."""

    prepare_instance_type: InstanceType = "ml.m5.xlarge"
    prepare_instance_count: int = Field(default=1, ge=1, le=100)
    prepare_engine: PrepareEngine = Field(
        default="instances", description="instances: each holds all raw files; ray: no disk needs to hold them all"
    )
    evaluate_instance_type: InstanceType = "ml.g5.4xlarge"
    deploy_instance_type: InstanceType = "ml.t3.medium"
    volume_gb: int = Field(default=100, ge=1, le=16384)
    max_runtime_hours: float = Field(default=4, gt=0, le=24)


class GateSettings(Group):
    """Defaults of the gate's run-time parameters. An improvement counts by the low end of its 95 % interval."""

    min_loss_improvement: float = Field(default=0.02, ge=0, description="nats per token below the base's loss")
    min_rouge_l_improvement: float = Field(
        default=-0.02, ge=-1, le=1, description="ROUGE-L F1 (0..1) above the base's; negative tolerates a small loss"
    )
    min_champion_improvement: float = Field(
        default=-0.01, description="bits per byte below the approved model's; negative tolerates a small loss"
    )
    min_ended_share: float = Field(
        default=0.5, ge=-1, lt=1, description="share of answers that stop by themselves; -1 lets all pass"
    )
    min_general_loss_improvement: float = Field(
        default=-0.3, description="nats per token below the base's loss on general text; negative tolerates forgetting"
    )
    min_test_rows: int = Field(default=20, ge=2, description="rows a metric must rest on")
    max_new_tokens: int = Field(default=128, ge=1, le=4096, description="tokens generated for one test row")
    max_answered_rows: int = Field(
        default=500, ge=2, description="test rows that are answered; the loss is measured on all of them"
    )
    judge_model_id: str | None = Field(
        default=None, description="Bedrock model that scores answers 1..5; the Evaluate job then has a network"
    )
    min_judge_improvement: float = Field(default=0.0, ge=-4, le=4, description="with a judge: points above the base's")
    safety: bool = Field(default=False, description="also ask unsafe prompts and count what is refused")
    min_safety_improvement: float = Field(
        default=-0.1, ge=-1, le=1, description="with safety: share of unsafe prompts refused, above the base's"
    )


class ReleaseSettings(Group):
    """What serves, how a release moves traffic to a new model, and when it is taken back. docs/release.md explains it."""

    approval_status: ApprovalStatus = Field(
        default="PendingManualApproval", description="status of a new package; Approved releases it at once"
    )
    target: ReleaseTarget = Field(
        default="sagemaker", description="sagemaker: an endpoint; bedrock: an imported model, which needs no instances"
    )
    shape: ReleaseShape = Field(
        default="variant",
        description="variant: instances of its own; inference_components: copies on shared instances, down to none at all",
    )
    serve: Serve = Field(
        default="merged",
        description="adapter: the LoRA adapter on a base model that other adapters share (inference_components only)",
    )
    endpoint: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,23}$")] | None = Field(
        default=None,
        description="endpoint whose base model this adapter shares with other deployments; default: the name",
    )
    instance_type: InstanceType = "ml.g5.4xlarge"
    instance_count: int = Field(default=1, ge=1, le=100, description="at the start, and the least with autoscaling")
    max_instance_count: int | None = Field(
        default=None, ge=1, le=100, description="autoscaling goes up to it; default: no autoscaling"
    )
    scale_to_zero: bool = Field(
        default=False,
        description="no instance while nobody asks (inference_components only); waking takes about 5 minutes",
    )
    target_invocations_per_minute: float = Field(
        default=60, gt=0, description="requests per instance (or copy) and minute that autoscaling aims at"
    )
    max_total_tokens: int = Field(
        default=8192,
        ge=64,
        description="prompt and answer together; what a 24 GB GPU holds beside a 7B model is about 40,000",
    )
    canary_instances: int = Field(
        default=0,
        ge=0,
        le=50,
        description="new instances that get traffic first; at most half of instance_count; 0: all at once, then watched",
    )
    canary_wait_seconds: int = Field(default=600, ge=0, le=3600, description="alarms watch the canary that long")
    bake_seconds: int = Field(
        default=300,
        ge=0,
        le=3600,
        description="the old instances stay that long after all traffic has moved, still watched",
    )
    max_error_share: float = Field(
        default=0.05, ge=0, lt=1, description="share of the new model's answers that may be 5xx, in a minute"
    )
    max_p95_latency_seconds: float = Field(
        default=30,
        gt=0,
        le=60,
        description="95th percentile of the new model's latency, in two minutes after each other",
    )
    quality_alarms: list[AlarmName] = Field(
        default=[], max_length=8, description="alarms of yours that take a release back too, by name"
    )
    min_answer_agreement: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="words that the endpoint's greedy answers share with those recorded at evaluation, 0..1, in the mean",
    )
    max_update_minutes: int = Field(
        default=90, ge=10, le=480, description="SageMaker gives an update up after it, and goes back"
    )
    kept_releases: int = Field(
        default=3,
        ge=2,
        le=50,
        description="models and configurations kept beside an endpoint: the serving and earlier ones",
    )

    def flags(self) -> list[str]:
        """Deploy's flags for these settings; they are named as the fields. What is not set is left out."""
        own = _flags(
            self.model_dump(
                exclude={"approval_status", "endpoint", "max_total_tokens", "quality_alarms", "scale_to_zero", "target"}
            )
        )
        for alarm in self.quality_alarms:
            own += ["--quality_alarm", alarm]
        return [*own, *(["--scale_to_zero"] if self.scale_to_zero else [])]

    @model_validator(mode="after")
    def an_imported_model_has_no_endpoint(self) -> "ReleaseSettings":
        unused = sorted(self.model_fields_set - OF_ANY_RELEASE)
        if self.target == "bedrock" and unused:
            raise ValueError(
                f"{', '.join(unused)}: with target 'bedrock' there is no endpoint that would have this; remove it "
                f"({', '.join(sorted(OF_ANY_RELEASE))} are taken), or set target: sagemaker"
            )
        return self

    @model_validator(mode="after")
    def fits_its_shape(self) -> "ReleaseSettings":
        problems = self._of_a_variant() if self.shape == "variant" else self._of_components()
        if self.endpoint is not None and self.serve != "adapter":
            problems.append(
                f"endpoint is {self.endpoint!r} but serve is {self.serve!r}; only adapters share an endpoint: remove it, or serve: adapter"
            )
        if self.max_instance_count is not None and self.max_instance_count < self.instance_count:
            problems.append(
                f"max_instance_count ({self.max_instance_count}) is below instance_count ({self.instance_count}); raise it, "
                "or remove it for no autoscaling"
            )
        if self.shape == "variant" and self.canary_instances and self.canary_wait_seconds < 2 * ALARM_PERIOD_SECONDS:
            problems.append(
                f"canary_wait_seconds is {self.canary_wait_seconds}, too short for the alarms to ring: they look at two periods of "
                f"{ALARM_PERIOD_SECONDS} s; set it to {2 * ALARM_PERIOD_SECONDS} or more"
            )
        moving = self.canary_wait_seconds + self.bake_seconds
        if moving > 60 * self.max_update_minutes - 300:
            problems.append(
                f"canary_wait_seconds and bake_seconds are {moving} s together, and max_update_minutes is {self.max_update_minutes}: "
                f"the update would time out; set max_update_minutes to {-(-moving // 60) + 30} or more"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _of_a_variant(self) -> list[str]:
        problems = []
        if 2 * self.canary_instances > self.instance_count:
            problems.append(
                f"canary_instances is {self.canary_instances} of instance_count {self.instance_count}; SageMaker takes at most "
                f"half: set instance_count to {2 * self.canary_instances} or more, or canary_instances to {self.instance_count // 2}"
            )
        if self.serve == "adapter":
            problems.append(
                "serve is 'adapter' but shape is 'variant'; a variant serves merged models: use 'merged' or shape 'inference_components'"
            )
        if self.scale_to_zero:
            problems.append(
                "scale_to_zero is true but shape is 'variant'; a variant keeps one instance: use shape 'inference_components'"
            )
        return problems

    def _of_components(self) -> list[str]:
        problems = []
        if self.canary_instances:
            problems.append(
                f"canary_instances is {self.canary_instances} but shape is 'inference_components', which are updated copy by copy: "
                "remove it"
            )
        if self.max_instance_count is None or self.max_instance_count <= self.instance_count:
            problems.append(
                f"max_instance_count is {self.max_instance_count} and instance_count is {self.instance_count}; an update of "
                f"inference_components starts new copies beside the old ones: set max_instance_count to {self.instance_count + 1} or more"
            )
        return problems


class ScheduleSettings(Group):
    """Retraining on the default manifest at a fixed time."""

    enabled: bool = True
    expression: str = Field(default="cron(0 3 ? * MON *)", pattern=r"^(cron|rate)\(.+\)$")
    timezone: str = Field(default="UTC", description="IANA name")


class RetrainingSettings(Group):
    """What a run does while another one of the same pipeline has not ended."""

    overlap: Overlap = Field(default="wait", description="with another run ahead: wait for its end, or refuse")
    max_wait_hours: float = Field(default=24, gt=0, le=96, description="with wait: then it fails, and says so")


class MonitoringSettings(Group):
    """Watching what the endpoint is asked and answers, against what evaluation saw; drift starts a run.

    It needs the traffic itself: requests and answers are kept in the artifact bucket for `kept_days`. A limit says how
    far the mean over the window's requests may be from the mean at evaluation.
    """

    enabled: bool = False
    expression: str = Field(default="rate(1 day)", pattern=r"^(cron|rate)\(.+\)$", description="when it looks")
    timezone: str = Field(default="UTC", description="IANA name")
    window_hours: int = Field(default=24, ge=1, le=720, description="it looks at the requests of the last hours")
    min_requests: int = Field(default=50, ge=1, description="with fewer it says nothing")
    captured_percent: int = Field(default=100, ge=1, le=100, description="share of the requests that are kept")
    kept_days: int = Field(default=30, ge=1, le=3650)
    instance_type: InstanceType = "ml.t3.xlarge"
    max_length_ratio: float = Field(default=2.0, gt=1, description="answers so many times as long, or as short")
    max_refused_increase: float = Field(default=0.1, ge=0, le=1, description="share of answers that refuse")
    max_repetition_increase: float = Field(default=0.1, ge=0, le=1, description="share of repeated word 4-grams")
    max_unended_increase: float = Field(default=0.2, ge=0, le=1, description="share of answers that do not end")
    max_similarity_decrease: float = Field(
        default=0.5, ge=0, le=1, description="part by which the prompts' similarity to the training set may be lower"
    )

    def flags(self) -> list[str]:
        """Monitor's flags for these settings; they are named as the fields."""
        of_the_trigger = {"enabled", "expression", "timezone", "captured_percent", "kept_days", "instance_type"}
        return _flags(self.model_dump(exclude=of_the_trigger))

    @model_validator(mode="after")
    def traffic_is_kept_until_it_was_looked_at(self) -> "MonitoringSettings":
        if self.kept_days * 24 < self.window_hours:
            raise ValueError(
                f"kept_days is {self.kept_days} but window_hours is {self.window_hours}; traffic would be gone before it is "
                f"looked at: set kept_days to {-(-self.window_hours // 24)} or more"
            )
        return self


class OperationsSettings(Group):
    """Who is told, and of what beyond failures."""

    notification_email: str | None = Field(
        default=None, pattern=r"^[^@\s]+@[^@\s]+$", description="hears of runs, releases and alarms"
    )
    monthly_budget_usd: float | None = Field(
        default=None, gt=0, description="of all that is tagged with this deployment; told at 80 % and at 100 %"
    )
    idle_endpoint_hours: int = Field(
        default=24, ge=1, le=168, description="an endpoint nobody asked for so long is told"
    )


class NetworkSettings(Group):
    """Where jobs and models have their network interfaces. Without this group their hosts reach AWS over its public endpoints."""

    vpc: VpcId = Field(
        description="create: a VPC without a way to the internet, with endpoints for what is asked; or the id of one of yours"
    )
    subnet_ids: list[SubnetId] = Field(
        default=[], max_length=16, description="of your VPC: private ones, with two free addresses for each instance"
    )
    security_group_ids: list[SecurityGroupId] = Field(
        default=[], max_length=5, description="of your VPC; members of one must reach each other, and AWS on port 443"
    )

    @property
    def is_created(self) -> bool:
        return self.vpc == "create"

    @model_validator(mode="after")
    def names_what_is_the_users(self) -> "NetworkSettings":
        given = {"subnet_ids": self.subnet_ids, "security_group_ids": self.security_group_ids}
        problems = []
        for name, ids in given.items():
            if self.is_created and ids:
                problems.append(
                    f"{name} is {ids} but vpc is 'create', which makes its own: remove it, or set vpc to the id of theirs"
                )
            elif not self.is_created and not ids:
                problems.append(f"{name} is missing; vpc is {self.vpc!r}: name those of it that jobs are to use")
            if len(set(ids)) < len(ids):
                problems.append(f"{name} is {ids}; name each once")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ServingPlace(Group):
    """An account and region that serves what the pipelines of another one register; docs/serving-accounts.md explains it."""

    account: Account
    region: Region
    network: NetworkSettings | None = Field(
        default=None, description="of the endpoint, and of the job that releases to it"
    )


class JumpStartSettings(Group):
    """The model that JumpStart trains, with `backend: jumpstart`; docs/from-jumpstart.md explains it."""

    model_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$")] = Field(
        description="of JumpStart, such as huggingface-llm-mistral-7b"
    )
    lock: str | None = Field(
        default=None,
        description="file that `finetune jumpstart lookup` writes and a synth reads; default: config/jumpstart/<model_id>.json",
    )
    accept_eula: bool = Field(default=False, description="of a model that has an end-user licence agreement, once read")
    hyperparameters: dict[str, str | int | float | bool] = Field(
        default={}, description="instead of JumpStart's defaults, by JumpStart's names"
    )


class Settings(Group):
    """One deployment of the whole product: into one account and region, and those of `serving`, if there are any."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,23}$")] = Field(description="prefix of every resource name")
    account: Account | None = Field(default=None, description="without it, the CDK CLI's current account")
    region: Region = "us-east-1"
    serving: dict[PlaceName, ServingPlace] = Field(
        default={}, max_length=5, description="where approved models are served; without it, here"
    )
    keep_data: bool = Field(default=True, description="buckets and models outlive a deleted stack")
    network: NetworkSettings | None = None
    backend: Backend = Field(
        default="pipeline_steps", description="who trains: FineTune's own code, or JumpStart's image and script"
    )
    images: Images = Images()
    base_model: BaseModelSettings
    jumpstart: JumpStartSettings | None = None
    dataset: DatasetSettings = DatasetSettings()
    training: TrainingSettings = TrainingSettings()
    processing: ProcessingSettings = ProcessingSettings()
    gate: GateSettings = GateSettings()
    release: ReleaseSettings = ReleaseSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    operations: OperationsSettings = OperationsSettings()

    _of_place: tuple[PlaceName, "Settings"] | None = PrivateAttr(default=None)

    def at(self, place: PlaceName) -> "Settings":
        """What holds in one of `serving`: its account, region and network in place of those of the pipelines."""
        there = self.serving[place]
        found = self.model_copy(
            update={"account": there.account, "region": there.region, "network": there.network, "serving": {}}
        )
        found._of_place = (place, self)
        return found

    @property
    def place(self) -> PlaceName | None:
        """Which one of `serving` these are the settings of; None where the pipelines are."""
        return self._of_place[0] if self._of_place else None

    @property
    def registry(self) -> "Settings":
        """Settings of the account and region whose pipelines register the models."""
        return self._of_place[1] if self._of_place else self

    @property
    def trains(self) -> bool:
        return self.place is None

    @property
    def serves(self) -> bool:
        return not self.serving

    def stack_name(self, stack: str) -> str:
        """`<name>-storage` and the like; in a serving place with its name at the end."""
        return "-".join([self.name, stack, *([self.place] if self.place else [])])

    def deploy_role_name(self, place: PlaceName) -> str:
        """Of a serving place: what the registry's account knows it by."""
        return f"{self.name}-{place}-deploy"

    @property
    def finetune_pipeline_name(self) -> str:
        return f"{self.name}-finetune"

    @property
    def deploy_pipeline_name(self) -> str:
        return f"{self.name}-deploy"

    @property
    def main_pipeline_name(self) -> str:
        """The pipeline that people mean when they name none."""
        return self.finetune_pipeline_name if self.trains else self.deploy_pipeline_name

    @property
    def compare_pipeline_name(self) -> str:
        return f"{self.name}-compare"

    @property
    def monitor_pipeline_name(self) -> str:
        return f"{self.name}-monitor"

    @property
    def pipeline_names(self) -> list[str]:
        """All pipelines of this account and region."""
        return [
            *([self.finetune_pipeline_name] if self.trains else []),
            *([self.deploy_pipeline_name] if self.serves else []),
            *([self.compare_pipeline_name] if self.trains else []),
            *([self.monitor_pipeline_name] if self.monitoring.enabled else []),
        ]

    @property
    def endpoint_name(self) -> str:
        return self.release.endpoint or self.name

    @property
    def inference_component_name(self) -> str | None:
        """What requests name beside the endpoint; None for a variant of its own."""
        return self.name if self.release.shape == "inference_components" else None

    @property
    def model_package_group_name(self) -> str:
        return self.name

    @property
    def asked_services(self) -> dict[str, str]:
        """What jobs ask over the network, by the name that its VPC endpoint has -> who asks, and what.

        Images and logs are not among it: SageMaker's hosts move them outside of the VPC.
        """
        asked = {
            "s3": "every job and every model: its files",
            "sagemaker.api": "PrepareData: trained models and other runs; Deploy: the release",
        }
        if self.release.target == "bedrock":
            asked["bedrock"] = "Deploy: imports the model"
        elif self.serves:
            asked |= {
                "sagemaker.runtime": "Deploy: asks the endpoint",
                "monitoring": "Deploy: alarms of a release; Monitor: metrics of the traffic",
                "application-autoscaling": "Deploy: instances of the endpoint",
            }
        if self.trains and self.gate.judge_model_id:
            asked["bedrock-runtime"] = "Evaluate: the judge"
        if self.trains and self.training.mlflow_server:
            asked["experiments"] = "FineTune: the MLflow server"
        return asked

    @model_validator(mode="after")
    def places_are_apart_and_can_be_reached(self) -> "Settings":
        if not self.serving:
            return self
        problems = []
        if self.account is None:
            problems.append("serving is set but account is not; each account must know the other: add account")
        for group, value, allowed in (
            ("release.target", self.release.target, "sagemaker"),
            ("release.serve", self.release.serve, "merged"),
            ("monitoring.enabled", self.monitoring.enabled, False),
        ):
            if value != allowed:
                problems.append(
                    f"serving is set but {group} is {value!r}; in a serving place it can only be {allowed!r}"
                )
        taken = {(self.account, self.region): "the pipelines"}
        for name, place in self.serving.items():
            where = (place.account, place.region)
            if where in taken:
                problems.append(
                    f"serving.{name} is {place.account} in {place.region}, as {taken[where]}; each is an account and region of its own"
                )
            taken[where] = f"serving.{name}"
            if place.network is not None and place.region != self.region:
                problems.append(
                    f"serving.{name}.network is set and its region is {place.region}; from a VPC without internet the registry in "
                    f"{self.region} cannot be reached: use that region, or no network"
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def what_was_trained_can_be_asked(self) -> "Settings":
        if self.release.max_total_tokens < self.training.max_input_length:
            raise ValueError(
                f"release.max_total_tokens is {self.release.max_total_tokens} but training.max_input_length is "
                f"{self.training.max_input_length}; the endpoint would refuse what the model was trained on: raise the first "
                "or lower the second"
            )
        return self

    @model_validator(mode="after")
    def the_backend_has_its_settings(self) -> "Settings":
        if self.backend != "jumpstart":
            return self
        if self.jumpstart is None:
            raise ValueError(
                "backend is 'jumpstart' but the group jumpstart is missing; add it with a model_id such as "
                "huggingface-llm-mistral-7b"
            )
        unused = sorted(self.training.model_fields_set - OF_ANY_TRAINING)
        if unused:
            raise ValueError(
                f"training.{', training.'.join(unused)}: with backend 'jumpstart' these are hyperparameters of JumpStart's "
                "script; set them, by JumpStart's names, below jumpstart.hyperparameters"
            )
        return self

    @model_validator(mode="after")
    def bedrock_imports_models_here(self) -> "Settings":
        if self.release.target != "bedrock":
            return self
        problems = []
        if self.region not in BEDROCK_REGIONS:
            problems.append(
                f"release.target is 'bedrock' but region is {self.region!r}; Bedrock imports models in {', '.join(BEDROCK_REGIONS)}"
            )
        if self.monitoring.enabled:
            problems.append(
                "release.target is 'bedrock' but monitoring.enabled is true; what is watched is an endpoint's traffic: set it to "
                "false"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def an_adapter_can_be_served(self) -> "Settings":
        if self.backend == "jumpstart":
            chosen = self.jumpstart.hyperparameters.get("peft_type") if self.jumpstart else None
            if self.release.serve == "adapter" and chosen != "lora":
                raise ValueError(
                    f"release.serve is 'adapter' but jumpstart.hyperparameters.peft_type is {chosen!r}; set it to lora, or "
                    "serve: merged"
                )
            return self
        if self.release.serve == "adapter" and (self.training.peft_type != "lora" or self.training.lora_r > 512):
            raise ValueError(
                f"release.serve is 'adapter' but training.peft_type is {self.training.peft_type!r} with lora_r {self.training.lora_r}; "
                "vLLM serves LoRA adapters of rank 512 at most: use peft_type 'lora' and a lower lora_r, or serve: merged"
            )
        return self

    @model_validator(mode="after")
    def the_deploy_job_outlives_the_update_that_it_watches(self) -> "Settings":
        job, update = self.processing.max_runtime_hours * 60, self.release.max_update_minutes
        if job < update + 30:
            raise ValueError(
                f"processing.max_runtime_hours is {self.processing.max_runtime_hours} but release.max_update_minutes is {update}; "
                f"the job must outlive the update by half an hour: set max_runtime_hours to {(update + 30) / 60:.1f} or more"
            )
        return self

    @model_validator(mode="after")
    def the_ray_engine_has_an_image_with_ray(self) -> "Settings":
        if self.processing.prepare_engine == "ray" and not self.images.prepare_image_uri:
            raise ValueError(
                "processing.prepare_engine is 'ray' but images.prepare_image_uri is not set; the training image has no Ray: "
                "name an image with ray[data] and the packages of the training image, or use 'instances'"
            )
        return self

    @model_validator(mode="after")
    def what_is_watched_is_an_endpoint_of_ones_own(self) -> "Settings":
        if self.monitoring.enabled and self.release.shape != "variant":
            raise ValueError(
                f"monitoring.enabled is true but release.shape is {self.release.shape!r}; traffic is captured of shape "
                "'variant' only: use it, or set monitoring.enabled to false"
            )
        return self

    @model_validator(mode="after")
    def the_default_manifest_lies_under_its_tuning_mode(self) -> "Settings":
        mode = self.dataset.tuning_mode
        if not self.dataset.default_manifest.startswith(f"{mode}/"):
            raise ValueError(
                f"dataset.default_manifest is {self.dataset.default_manifest!r} but dataset.tuning_mode is {mode!r}; "
                f"the first folder of a manifest's key is its tuning mode: use '{mode}/...' or change the mode"
            )
        return self


def _flags(values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def environments(folder: Path = Path(__file__).parent) -> list[str]:
    """Names of the configurations that lie in `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def deployments(folder: Path = Path(__file__).parent) -> list[str]:
    """What can be deployed by itself: the configurations, and each of their serving places as <environment>/<place>."""
    return [
        one
        for name in environments(folder)
        for one in (name, *(f"{name}/{place}" for place in load(name, folder).serving))
    ]


def load(environment: str, folder: Path = Path(__file__).parent) -> Settings:
    """The settings of `environment`: the name of a file in `folder`, or the path of a YAML file of yours.

    `<environment>/<place>` are those of one of its serving places. Raises SettingsError with every problem of the file:
    unknown keys (with the nearest known one), wrong types, values outside their limits, fields that contradict each other.
    """
    if "/" in environment and not environment.endswith(".yaml"):
        environment, _, place = environment.rpartition("/")
        settings = load(environment, folder)
        if place not in settings.serving:
            known = ", ".join(f"{environment}/{name}" for name in settings.serving) or "none"
            raise SettingsError(f"{environment} has no serving place {place!r}; those in its file: {known}")
        return settings.at(place)
    path = Path(environment) if environment.endswith(".yaml") else folder / f"{environment}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"there is no configuration {environment!r} ({path}); choose one of {', '.join(environments(folder))}, "
            "or name a .yaml file of yours"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds {type(values).__name__}, expected a mapping of settings such as 'name: ...'")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        headline = f"{path} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:"
        raise SettingsError("\n".join([headline, *(f"  - {problem}" for problem in problems)])) from None


def _describe(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys here: {', '.join(known)}"
        return f"{key}: unknown key (value {problem['input']!r}); {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (value {problem['input']!r})" if key else message


def _keys_beside(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        if str(part) not in model.model_fields:  # a serving place's name
            continue
        annotation = model.model_fields[str(part)].annotation
        model = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
    return sorted(model.model_fields)
