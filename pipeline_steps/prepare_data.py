"""PrepareData: raw rows -> checked, split, content-addressed dataset and its data card.

in    raw/        train/ (or the rows themselves), optional validation/ and prompts.txt
out   report/     data_card.html, quarantine.jsonl, removed.jsonl and, last, data_card.json
      S3          <publish_to>/<digest>/{train,validation,test}/{examples-*.jsonl, tokens-*.arrow, dataset.json}

Every bad row is told with its place, all at once; a dataset with more of them than allowed is not published at all, and
its report holds these rows alone (quarantine.jsonl).
Without --publish_to the data is checked and nothing is published: what `finetune validate-data` does.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline_steps import data_card_page
from pipeline_steps.contract import chat_format, costs, dataset, files, instances, json_files, messages, prompt_template
from pipeline_steps.contract.chat_format import ChatFormat, ChatTemplateError
from pipeline_steps.contract.dataset import SPLITS, SplitInfo
from pipeline_steps.contract.errors import DataError, StepError
from pipeline_steps.contract.prompt_template import PromptTemplate
from pipeline_steps.data import card, duplicates, lengths, limits, parts, sagemaker_job, sources
from pipeline_steps.data.duplicates import Decision
from pipeline_steps.data.engine import Engine, Written
from pipeline_steps.data.findings import Findings
from pipeline_steps.data.instances_engine import InstancesEngine
from pipeline_steps.data.parts import Examination, PersonalDataPolicy
from pipeline_steps.data.rows import RowReader
from pipeline_steps.data.sources import SourceFile
from pipeline_steps.overlap import Policy as OverlapPolicy
from pipeline_steps.overlap import wait_for_turn
from pipeline_steps.text_encoder import TextEncoder

EngineName = Literal["instances", "ray"]
Backend = Literal["pipeline_steps", "jumpstart"]
WEIGHTS_ENDING = ".safetensors"


@dataclass(frozen=True)
class PrepareJob:
    """What main's flags say. Ratios and shares are 0..1; limits of rows are -1 for all; URIs are S3 prefixes."""

    raw: str
    output: Path
    tuning_mode: dataset.Mode
    validation_split_ratio: float = 0.1
    test_split_ratio: float = 0.2
    train_data_split_seed: int = 0
    split_group_column: str | None = None
    slice_column: str | None = None
    max_train_samples: int = -1
    max_val_samples: int = -1
    add_input_output_demarcation_key: bool = False
    max_quarantined_rows: int = 0
    max_truncated_share: float = 0.01
    personal_data: PersonalDataPolicy = "report"
    max_input_length: int = 2048
    base_model_uri: str | None = None
    tokenizer: Path | None = None
    instance_type: str | None = None
    instance_count: int = 1
    volume_key: bool | None = None
    peft_type: str = "lora"
    bits: int = 16
    lora_r: int = 16
    gradient_checkpointing: str = "auto"
    epoch: float = 1.0
    tokens_per_second: float | None = None
    usd_per_hour: float | None = None
    publish_to: str | None = None
    model_package_group: str | None = None
    run_parameters: str = ""
    engine: EngineName = "instances"
    started_by: str | None = None
    pipeline_execution: str | None = None
    overlap: OverlapPolicy = "wait"
    max_wait_hours: float = 24.0
    backend: Backend = "pipeline_steps"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="prepare-data", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--raw", default="/opt/ml/processing/input/raw", help="dataset folder, or the S3 URI of its manifest")
    add("--output", type=Path, default=Path("/opt/ml/processing/output") / files.REPORT_OUTPUT)
    add("--tuning_mode", choices=get_args(dataset.Mode), required=True)
    add("--validation_split_ratio", type=float, help="share of the rows; without a validation folder")
    add("--test_split_ratio", type=float, help="share of the rows that is held out for Evaluate")
    add("--train_data_split_seed", type=int)
    add("--split_group_column", help="rows with the same value stay on one side; default: the same prompt")
    add("--slice_column", help="evaluation has figures of its own for each of its values; default: none")
    add("--max_train_samples", type=int, help="rows to train on at most; -1: all")
    add("--max_val_samples", type=int, help="rows to validate on at most; -1: all")
    add("--add_input_output_demarcation_key", type=lambda text: text == "True", help="True or False, as on JumpStart")
    add("--max_quarantined_rows", type=int, help="bad rows that are set aside; one more and the step fails")
    add("--max_truncated_share", type=float, help="share of the rows that may be longer than max_input_length")
    add("--personal_data", choices=get_args(PersonalDataPolicy), help="what to do with it")
    add("--max_input_length", type=int, help="tokens of a training sequence")
    add("--base_model_uri", help="S3 prefix of the base model, whose tokenizer is used")
    add("--tokenizer", type=Path, help="folder with a tokenizer, instead of --base_model_uri")
    add("--instance_type", help="training instance, for the estimates of memory, time and cost")
    add("--instance_count", type=int)
    add("--volume_key", type=lambda text: text == "True", help="whether the training's request names a key for volumes")
    add("--peft_type")
    add("--bits", type=int)
    add("--lora_r", type=int)
    add("--gradient_checkpointing")
    add("--epoch", type=float)
    add("--tokens_per_second", type=float, help="training speed, if it is known")
    add("--usd_per_hour", type=float, help="price of one training instance, if it is known")
    add("--publish_to", help="S3 prefix for the dataset; without it, the data is only checked")
    add("--model_package_group", help="where a model of the same data and parameters is looked for")
    add("--run_parameters", help="everything else that a trained model depends on, as one text")
    add("--engine", choices=get_args(EngineName), help="instances of this job, or a Ray cluster made of them")
    add("--started_by", help="what started this run, for the data card")
    add("--pipeline_execution", help="ARN of the execution that this job is of; it waits for those ahead of it")
    add("--overlap", choices=get_args(OverlapPolicy), help="with others ahead: wait for their end, or refuse")
    add("--max_wait_hours", type=float, help="wait that long at most")
    add("--backend", choices=get_args(Backend), help="who trains; of JumpStart's memory nothing is known")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    run(PrepareJob(**given))


def run(job: PrepareJob) -> dict[str, Any]:
    """Check everything, then publish the splits; the data card is written last, and returned."""
    if job.instance_type and job.volume_key is not None:
        refused = instances.refused_volumes(job.instance_type, job.volume_key)
        if refused:  # by SageMaker too, but after all this work
            raise StepError(refused)
    if job.pipeline_execution:
        wait_for_turn(job.pipeline_execution, job.overlap, job.max_wait_hours)
    started = time.monotonic()
    job.output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, on the volume that the job was given: the container's own disk is small.
    with tempfile.TemporaryDirectory(prefix="prepare-data-", dir=job.output.parent) as folder:
        work = Path(folder)
        hosts = sagemaker_job.instances()
        if not job.publish_to and (job.engine == "ray" or hosts.count > 1):
            raise StepError(
                "--publish_to is missing: below it several instances, and the tasks of --engine ray, hand each other what "
                "they made; to check data without publishing it, use one instance without --engine ray"
            )
        shared = f"{job.publish_to}/.exchange/{sagemaker_job.name()}/"
        if job.engine == "instances":
            return prepare(job, work, InstancesEngine(work, hosts, shared), started)
        from pipeline_steps.data import ray_engine

        with ray_engine.cluster(hosts) as is_driver:
            if not is_driver:
                return {}
            engine = ray_engine.RayEngine(work, shared)
            try:
                return prepare(job, work, engine, started)
            finally:
                engine.clear()


def prepare(job: PrepareJob, work: Path, engine: Engine, started: float) -> dict[str, Any]:
    """The work in its order. Raises DataError with every problem that was found; then nothing is published.

    Of a refused dataset the report holds quarantine.jsonl alone, if rows are bad.
    """
    if engine.is_leader:
        clear_report(job.output)  # what an earlier run over the same folder left is not of this data

    # 1. What there is: files and template, with all that is wrong with them; the base model's tokenizer.
    found, own_template, prompts = read_folder(job)
    all_parts = sources.cut(found)
    with engine.ready(all_parts):  # its processes start while the tokenizer is read
        model = read_base_model(job, work)

        template, chat = rendering(job.tuning_mode, own_template, model.tokenizer)

        # 2. Every row: checked, searched for personal data, rendered, encoded, fingerprinted.
        own_validation = any(file.folder == "validation" for file in found)
        examination = Examination(
            RowReader(job.tuning_mode, template, chat, job.split_group_column, job.slice_column),
            model.encoder,
            job.personal_data,
            job.train_data_split_seed,
            0.0 if own_validation else job.validation_split_ratio,
            job.test_split_ratio,
            parts.ngram_modulus(found),
        )
        findings = engine.examine(all_parts, examination)
    if engine.is_leader and findings.bad:  # first of all, so that they are there where the dataset is refused too
        write_lines(job.output / files.QUARANTINE_FILE, findings.bad_rows())
        print(f"bad rows, with their reasons ({findings.bad}): {job.output / files.QUARANTINE_FILE}", flush=True)
    limits.refuse_bad_rows(findings, job.max_quarantined_rows, job.tuning_mode)
    if job.personal_data == "fail":
        limits.refuse_personal_data(findings)

    # 3. Duplicates and leaks, decided alike by every instance from all fingerprints.
    decision = duplicates.decide(findings.sketches, {"train": job.max_train_samples, "validation": job.max_val_samples})
    limits.refuse_short_splits(decision, job)

    # 4. The rows that are kept, split by split.
    written = engine.write(findings, decision, with_tokens=model.encoder is not None)
    if job.tuning_mode != "domain":  # a document is cut into pieces that fit
        to_learn = lengths.total(written.splits["train"]) + lengths.total(written.splits["validation"])
        limits.refuse_truncation(to_learn, job.max_input_length, job.max_truncated_share)

    memory = None
    if job.backend == "pipeline_steps" and model.folder and (model.folder / "config.json").is_file():
        row_lengths = [length for split in ("train", "validation") for length in lengths.total(written.splits[split])]
        memory = limits.refuse_what_no_gpu_holds(job, model.folder, min(max(row_lengths), job.max_input_length))
    if memory and engine.is_leader:
        print(memory, flush=True)

    # 5. The dataset under its digest, and its card.
    packages = registered_packages(job.model_package_group) if job.publish_to and job.model_package_group else []
    digest = dataset_digest(job, template, chat, prompts, decision, model.encoder)
    content = {
        "schema_version": files.DATA_CARD_SCHEMA_VERSION,
        "dataset_digest": digest,
        "test_digest": decision.digests["test"],
        **card.figures(
            job,
            found,
            template,
            chat,
            findings,
            decision,
            written,
            model.encoder,
            model.parameters,
            last_run(job, packages, model.digest),
        ),
        "memory": memory,
        "started_by": job.started_by,
    }
    cost = content["cost"] or {}
    content["cost_told"] = costs.told(cost.get("hours"), cost.get("usd"), job.instance_count, job.instance_type)
    print(f"cost: the training is estimated at {content['cost_told']}", flush=True)
    if job.publish_to:
        content |= {"uris": split_uris(job.publish_to, digest), **earlier_training(job, packages, digest, model.digest)}
        content["champion"] = champion(job, content["uris"])
    content["seconds"] = round(time.monotonic() - started, 1)
    content["card_digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    page = data_card_page.render(content)
    if job.publish_to:
        infos = split_infos(job, digest, decision, written, template, chat, prompts, model.encoder)
        publish(infos, content["uris"], page, engine, work)
    if engine.is_leader:
        write_report(job.output, content, page, findings, decision)
        engine.clear()
    return content


# ---------------------------------------------------------------- 1. what there is


def read_folder(job: PrepareJob) -> tuple[list[SourceFile], PromptTemplate | None, list[str]]:
    """Data files, prompts and, if there is one, template of the dataset folder. Raises DataError with all that is wrong."""
    problems: list[str] = []
    found: list[SourceFile] = []
    template: PromptTemplate | None = None
    prompts: list[str] = []
    listing = sources.listing(job.raw)
    paths = {name: path for path, name, _ in listing}
    try:
        found = sources.choose(listing, job.tuning_mode)
    except DataError as error:
        problems += error.problems
    try:
        if job.tuning_mode == "instruction":
            folder = "train/" if any(name.startswith("train/") for name in paths) else ""
            template_file = paths.get(f"{folder}{files.TEMPLATE_FILE}")
            if template_file:
                content = sources.read_small(template_file, files.TEMPLATE_FILE)
                template = prompt_template.read(content, files.TEMPLATE_FILE)
                template = template.with_demarcation() if job.add_input_output_demarcation_key else template
    except DataError as error:
        problems += error.problems
    if files.PROMPTS_FILE in paths:
        try:
            content = sources.read_small(paths[files.PROMPTS_FILE], files.PROMPTS_FILE)
            prompts = [line.strip() for line in content.decode("utf-8-sig").split("\n") if line.strip()]
        except UnicodeDecodeError as error:
            problems.append(f"{files.PROMPTS_FILE}: not UTF-8 (byte {error.start}); save it as UTF-8")
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return found, template, prompts


@dataclass(frozen=True)
class BaseModel:
    """What preparing data needs of a base model; None where it is not known.

    `parameters`: how many weights; `folder`: its configuration and tokenizer.
    """

    tokenizer: Any = None
    encoder: TextEncoder | None = None
    parameters: float | None = None
    digest: str | None = None
    folder: Path | None = None


def read_base_model(job: PrepareJob, work: Path) -> BaseModel:
    """The tokenizer of the base model and what its import wrote beside it. Raises StepError if it is not there."""
    from pipeline_steps import s3
    from pipeline_steps.models import load_tokenizer

    if job.tokenizer:
        weight_bytes = sum(path.stat().st_size for path in job.tokenizer.glob(f"*{WEIGHTS_ENDING}"))
        marker_file = job.tokenizer / files.BASE_MODEL_FILE
        if not weight_bytes and marker_file.is_file():
            marker = json_files.read(marker_file, files.BASE_MODEL_SCHEMA_VERSION)
            weight_bytes = marker.get(files.WEIGHT_BYTES, 0)
        tokenizer = load_tokenizer(job.tokenizer)
        encoder = TextEncoder.of(tokenizer)
        return BaseModel(tokenizer, encoder, weights_in(job.tokenizer, weight_bytes), folder=job.tokenizer)
    if not job.base_model_uri:
        return BaseModel()
    uri = job.base_model_uri.rstrip("/")
    # The cheapest check first: without base weights the training would fail after this step had been paid.
    if not s3.exists(f"{uri}/{files.BASE_MODEL_FILE}"):
        raise StepError(
            f"the base model is not at {job.base_model_uri}; import it once with "
            f"'finetune import-model SOURCE --name {uri.rsplit('/', 1)[-1]}'"
        )
    folder = work / "tokenizer"
    weight_bytes = 0
    for found, size in s3.sizes_below(f"{uri}/"):
        if found.endswith(WEIGHTS_ENDING):
            weight_bytes += size
        else:
            s3.download(found, folder / found.removeprefix(f"{uri}/"))
    marker = json_files.read(folder / files.BASE_MODEL_FILE, files.BASE_MODEL_SCHEMA_VERSION)
    tokenizer = load_tokenizer(folder)
    return BaseModel(tokenizer, TextEncoder.of(tokenizer), weights_in(folder, weight_bytes), marker["digest"], folder)


def rendering(
    mode: dataset.Mode, own: PromptTemplate | None, tokenizer: Any
) -> tuple[PromptTemplate | None, ChatFormat | None]:
    """How rows become texts. `own` is the user's template, which goes before all; `tokenizer` is None if it is not known.

    Dialogs: the chat format of the base model. Rows without a template: the same, made a template, if the base model is an
    instruct model, and else JumpStart's default. Raises ChatTemplateError if dialogs cannot be written.
    """
    from pipeline_steps.models import chat_format_of

    if mode == "chat":
        return None, chat_format_of(tokenizer) if tokenizer else chat_format.of_no_tokenizer()
    if mode == "domain" or own:
        return own, None
    if tokenizer and tokenizer.chat_template:
        try:
            chat = chat_format_of(tokenizer)
            return chat.prompt_template(), chat
        except ChatTemplateError as error:  # such as a base model's, which does not end with its end-of-sequence
            print(f"there is no {files.TEMPLATE_FILE}, and JumpStart's default is used: {error}", flush=True)
    return prompt_template.DEFAULT, None


def weights_in(folder: Path, weight_bytes: int) -> float | None:
    """How many weights so many bytes are, by the model's config.json in `folder`; None without weights or config."""
    path = folder / "config.json"
    if not weight_bytes or not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return weight_bytes / (4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2)


# ---------------------------------------------------------------- 5. dataset and card


def dataset_digest(
    job: PrepareJob,
    template: PromptTemplate | None,
    chat: ChatFormat | None,
    prompts: Sequence[str],
    decision: Decision,
    encoder: TextEncoder | None,
) -> str:
    """SHA-256 of all that the published files hold: the same data under the same rules has the same address."""
    content = {
        "schema_version": dataset.SCHEMA_VERSION,
        "tuning_mode": job.tuning_mode,
        "template": template.to_dict() if template else None,
        "chat": asdict(chat) if chat else None,
        "prompts": list(prompts),
        "splits": decision.digests,
        "tokenizer": encoder.digest if encoder else None,
        "slice_column": job.slice_column,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def split_infos(
    job: PrepareJob,
    digest: str,
    decision: Decision,
    written: Written,
    template: PromptTemplate | None,
    chat: ChatFormat | None,
    prompts: list[str],
    encoder: TextEncoder | None,
) -> list[SplitInfo]:
    return [
        SplitInfo(
            digest,
            decision.digests[split],
            job.tuning_mode,
            split,
            decision.counts[split],
            tuple(summary.part for summary in written.splits[split] if summary.part),
            template,
            prompts,
            encoder.digest if encoder else None,
            job.slice_column,
            chat,
        )
        for split in SPLITS
    ]


def split_uris(publish_to: str, digest: str) -> dict[str, str]:
    return {split: f"{publish_to.rstrip('/')}/{digest}/{split}/" for split in SPLITS}


def publish(infos: Sequence[SplitInfo], uris: dict[str, str], page: str, engine: Engine, work: Path) -> None:
    """Bring the files of each split to its place, and the data card beside the test set; dataset.json completes it."""
    from pipeline_steps import s3

    # A split that is there already has the same content: it is named by it.
    missing = [info for info in infos if not s3.exists(uris[info.split] + files.DATASET_FILE)]
    engine.publish({info.split: uris[info.split] for info in missing})
    if engine.is_leader:
        for info in missing:
            folder = work / "infos" / info.split
            dataset.write_info(folder, info)
            if info.split == "test":
                (folder / files.DATA_CARD_PAGE).write_text(page, encoding="utf-8")
                s3.upload(folder / files.DATA_CARD_PAGE, uris[info.split] + files.DATA_CARD_PAGE)
            s3.upload(folder / files.DATASET_FILE, uris[info.split] + files.DATASET_FILE)


def registered_packages(group: str) -> list[dict[str, Any]]:
    """Every model package of the group that has not failed, the newest first."""
    import boto3

    client = boto3.client("sagemaker")
    pages = client.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=group, SortBy="CreationTime", SortOrder="Descending"
    )
    arns = [package["ModelPackageArn"] for page in pages for package in page["ModelPackageSummaryList"]]
    described = [client.describe_model_package(ModelPackageName=arn) for arn in arns]
    return [package for package in described if package["ModelPackageStatus"] != "Failed"]


def last_run(
    job: PrepareJob, packages: Sequence[dict[str, Any]], base_model_digest: str | None
) -> costs.LastRun | None:
    """What the newest run with the same instances, base model and kind of training reached; None without one."""
    wanted = {
        "training_instances": f"{job.instance_count} x {job.instance_type}",
        "base_model_digest": base_model_digest,
        "peft_type": job.peft_type,
    }
    for package in packages:
        said = package.get("CustomerMetadataProperties", {})
        # JumpStart does not tell how fast it trained.
        if all(said.get(name) == value for name, value in wanted.items()) and float(said["tokens_per_second"]):
            return costs.LastRun(
                package["ModelPackageArn"], float(said["tokens_per_second"]), float(said["overhead_seconds"])
            )
    return None


def earlier_training(
    job: PrepareJob, packages: Sequence[dict[str, Any]], digest: str, base_model_digest: str | None
) -> dict[str, Any]:
    """Whether a registered model comes from the same data and parameters: then training again would give it again.

    `run_fingerprint` is written into every model package by Register and looked for here.
    """
    fingerprint = hashlib.sha256(f"{digest}/{base_model_digest}/{job.run_parameters}".encode()).hexdigest()
    found = next(
        (
            package["ModelPackageArn"]
            for package in packages
            if package.get("CustomerMetadataProperties", {}).get("run_fingerprint") == fingerprint
        ),
        None,
    )
    message = ""
    if found:
        message = (
            f"nothing is trained: {found} was trained from the same data (digest {digest[:12]}) with the same base model, "
            "code and parameters; change one of them to train again"
        )
        messages.tell_result(message)
    return {"run_fingerprint": fingerprint, "already_trained": found is not None, "message": message}


def champion(job: PrepareJob, uris: dict[str, str]) -> dict[str, str]:
    """The newest approved model of the group, with which Evaluate compares the new one: its ARN and where it lies.

    Without one the package is "none" and the place that of the test split: a job's input must exist, and this one is
    small. Raises StepError if the model is gone, before a training is paid.
    """
    import boto3

    from pipeline_steps import s3

    none = {"package": files.NO_PACKAGE, "model_uri": uris["test"]}
    if not job.model_package_group:
        return none
    client = boto3.client("sagemaker")
    found = client.list_model_packages(
        ModelPackageGroupName=job.model_package_group,
        ModelApprovalStatus="Approved",
        SortBy="CreationTime",
        SortOrder="Descending",
        MaxResults=1,
    )["ModelPackageSummaryList"]
    if not found:
        return none
    arn = found[0]["ModelPackageArn"]
    containers = client.describe_model_package(ModelPackageName=arn)["InferenceSpecification"]["Containers"]
    uri = containers[0].get("ModelDataSource", {}).get("S3DataSource", {}).get("S3Uri", "")
    if not uri or not s3.exists(uri + files.TRAINING_FILE):
        raise StepError(
            f"the approved model {arn} is not at {uri or 'a folder in S3'} ({files.TRAINING_FILE} is missing), so the new "
            "one cannot be compared with it; set its approval status to Rejected, or bring its files back"
        )
    return {"package": arn, "model_uri": uri}


def clear_report(output: Path) -> None:
    for name in (files.QUARANTINE_FILE, files.REMOVED_FILE, files.DATA_CARD_PAGE, files.DATA_CARD_FILE):
        (output / name).unlink(missing_ok=True)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_report(output: Path, content: dict[str, Any], page: str, findings: Findings, decision: Decision) -> None:
    """removed.jsonl where there is something to say, data_card.html, and last data_card.json."""
    output.mkdir(parents=True, exist_ok=True)
    if decision.exact or decision.near:
        write_lines(output / files.REMOVED_FILE, card.removed_rows(findings, decision))
    (output / files.DATA_CARD_PAGE).write_text(page, encoding="utf-8")
    json_files.write(output / files.DATA_CARD_FILE, content)
