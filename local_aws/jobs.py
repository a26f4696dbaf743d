"""Processing and training jobs that really run: input from S3, processes with the container contract, output to S3."""

import contextlib
import copy
import json
import logging
import os
import queue
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from local_aws import identity
from local_aws.containers import (
    HOST_NAME,
    Container,
    ContainerError,
    ContainerSpec,
    LogStream,
    image_folder,
    stop_together,
)
from local_aws.object_store import ObjectStore, ObjectStoreError
from local_aws.sagemaker_api import (
    PRINCIPAL,
    Request,
    ResourceInUse,
    Response,
    Service,
    ValidationException,
    now,
    page,
    tags_of,
)

log = logging.getLogger(__name__)

Kind = Literal["Processing", "Training"]
STOP_GRACE_SECONDS = 120.0  # what SageMaker gives a job between SIGTERM and SIGKILL
SHUTDOWN_GRACE_SECONDS = 2.0
SYNC_SECONDS = 1.0  # how often checkpoints and continuous outputs are looked at
LONGEST_REASON = 1024  # characters of FailureReason and ExitMessage
MOST_HOSTS = 8  # of a processing job: its hosts share this machine

SECONDARY_STATUS_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}


class JobFailed(Exception):
    """The job's own program failed, or its input is not there; the text is the FailureReason."""


class JobStopped(Exception):
    """The job was asked to stop before its program started."""


@dataclass(frozen=True)
class ProgramFailure:
    """How a program ended that failed by itself."""

    host: str
    code: int
    last_line: str  # that it printed


class Job:
    """A job: what Describe returns, and the containers while there are any."""

    def __init__(self, kind: Kind, record: dict[str, Any], folder: Path) -> None:
        self.kind = kind
        self.record = record
        self.folder = folder
        count = record["ProcessingResources"]["ClusterConfig"]["InstanceCount"] if kind == "Processing" else 1
        self.hosts = [f"algo-{number}" for number in range(1, count + 1)]
        self.containers: dict[str, Container] = {}  # by host
        self.stop_requested = False
        self.time_is_up = False

    @property
    def name(self) -> str:
        return str(self.record[f"{self.kind}JobName"])

    @property
    def arn(self) -> str:
        return str(self.record[f"{self.kind}JobArn"])

    @property
    def status(self) -> str:
        return str(self.record[f"{self.kind}JobStatus"])

    @property
    def ended(self) -> bool:
        return self.status in ("Completed", "Failed", "Stopped")

    def local(self, path: str, host: str = HOST_NAME) -> Path:
        """Where a path of the host's container, /opt/ml or below, lies on this machine."""
        return self.folder / host / "ml" / Path(path).relative_to("/opt/ml")

    def stop(self, grace: float) -> None:
        """Stop the program of every host at the same time, as Container.stop does; returns when all have ended."""
        stop_together([container for container in self.containers.values() if container.running], grace)


class Jobs:
    """CreateProcessingJob, CreateTrainingJob and what belongs to them."""

    def __init__(self, service: Service, store: ObjectStore) -> None:
        self._service = service
        self._store = store
        self._jobs: dict[tuple[Kind, str], Job] = {}
        self._closed = False

    # ------------------------------------------------------------------ operations

    def create_processing_job(self, request: Request) -> Response:
        _refuse(_unsupported_in_processing(request))
        job = self._add("Processing", request, {"ProcessingJobStatus": "InProgress"})
        threading.Thread(target=self._run, args=(job, self._process), name=job.name, daemon=True).start()
        return {"ProcessingJobArn": job.arn}

    def create_training_job(self, request: Request) -> Response:
        _refuse(_unsupported_in_training(request))
        fields = {
            "TrainingJobStatus": "InProgress",
            "SecondaryStatusTransitions": [],
            "ModelArtifacts": {"S3ModelArtifacts": ""},
        }
        job = self._add("Training", request, fields)
        self._set_secondary_status(job, "Starting")
        threading.Thread(target=self._run, args=(job, self._train), name=job.name, daemon=True).start()
        return {"TrainingJobArn": job.arn}

    def describe_processing_job(self, request: Request) -> Response:
        return self._describe("Processing", request)

    def describe_training_job(self, request: Request) -> Response:
        return self._describe("Training", request)

    def list_processing_jobs(self, request: Request) -> Response:
        return self._list("Processing", request)

    def list_training_jobs(self, request: Request) -> Response:
        return self._list("Training", request)

    def stop_processing_job(self, request: Request) -> Response:
        return self._stop("Processing", request)

    def stop_training_job(self, request: Request) -> Response:
        return self._stop("Training", request)

    # ------------------------------------------------------------------ for the other rooms

    def wait(self, kind: Kind, name: str) -> dict[str, Any]:
        """Wait until the job has ended; returns what Describe returns then."""
        job = self._find(kind, name)
        with self._service.changed:
            self._service.changed.wait_for(lambda: job.ended)
            return copy.deepcopy(job.record)

    def shutdown(self) -> None:
        """End every running job; none starts any more."""
        with self._service.changed:
            self._closed = True
            running = [job for job in self._jobs.values() if not job.ended]
            for job in running:
                job.stop_requested = True
        stop_together(running, SHUTDOWN_GRACE_SECONDS)

    # ------------------------------------------------------------------ state

    def _add(self, kind: Kind, request: Request, fields: dict[str, Any]) -> Job:
        self._service.check_role(request["RoleArn"])
        name = request[f"{kind}JobName"]
        arn = self._service.arn(f"{kind.lower()}-job/{name}")
        stopping = {"StoppingCondition": {"MaxRuntimeInSeconds": 86400}}
        times = {"CreationTime": now(), "LastModifiedTime": now()}
        record = {**stopping, **copy.deepcopy(request), f"{kind}JobArn": arn, **times, **fields}
        record.pop("Tags", None)
        with self._service.changed:
            if (kind, name) in self._jobs:
                raise ResourceInUse(
                    f"{kind} job names must be unique within an AWS account and region, and a job '{name}' already exists ({arn})"
                )
            job = Job(kind, record, self._service.settings.root / "jobs" / f"{kind.lower()}-{name}")
            self._jobs[kind, name] = job
            self._service.tags[arn] = tags_of(request)
        return job

    def _find(self, kind: Kind, name: str) -> Job:
        with self._service.changed:
            job = self._jobs.get((kind, name))
        if job is None:
            if kind == "Processing":
                raise ValidationException(f"Could not find requested job with name: {name}")
            raise ValidationException(f"Requested resource not found: training job '{name}'")
        return job

    def _describe(self, kind: Kind, request: Request) -> Response:
        job = self._find(kind, request[f"{kind}JobName"])
        with self._service.changed:
            return copy.deepcopy(job.record)

    def _list(self, kind: Kind, request: Request) -> Response:
        with self._service.changed:
            records = [copy.deepcopy(job.record) for (of, _), job in self._jobs.items() if of == kind]
        jobs, token = page(records, request, name=f"{kind}JobName", status=f"{kind}JobStatus")
        return {f"{kind}JobSummaries": jobs, **token}

    def _stop(self, kind: Kind, request: Request) -> Response:
        job = self._find(kind, request[f"{kind}JobName"])
        with self._service.changed:
            if job.ended:
                raise ValidationException(
                    f"The request was rejected because the {kind.lower()} job '{job.name}' is in status {job.status}; "
                    "only a job in progress can be stopped."
                )
            if job.stop_requested:
                return {}
            job.stop_requested = True
            self._set(job, f"{kind}JobStatus", "Stopping")
            if kind == "Training":
                self._set_secondary_status(job, "Stopping")
        threading.Thread(target=job.stop, args=(STOP_GRACE_SECONDS,), daemon=True).start()
        self._emit(job)
        return {}

    def _set(self, job: Job, field: str, value: Any) -> None:
        with self._service.changed:
            job.record.update({field: value, "LastModifiedTime": now()})
            self._service.changed.notify_all()

    def _set_secondary_status(self, job: Job, status: str, message: str | None = None) -> None:
        with self._service.changed:
            transitions = job.record["SecondaryStatusTransitions"]
            if transitions:
                transitions[-1]["EndTime"] = now()
            text = message or SECONDARY_STATUS_MESSAGES[status]
            transitions.append({"Status": status, "StartTime": now(), "StatusMessage": text})
            self._set(job, "SecondaryStatus", status)

    def _emit(self, job: Job) -> None:
        with self._service.changed:
            detail = copy.deepcopy(job.record)
        self._service.emit(f"SageMaker {job.kind} Job State Change", detail, job.arn)

    # ------------------------------------------------------------------ running

    def _run(self, job: Job, work: Any) -> None:
        """Run one job to its end, whatever happens; runs in the job's own thread."""
        self._emit(job)
        end: dict[str, Any]
        try:
            shutil.rmtree(job.folder, ignore_errors=True)
            for host in job.hosts:
                job.local("/opt/ml/output", host).mkdir(parents=True)
            work(job)
            end = {"status": "Stopped" if job.stop_requested or job.time_is_up else "Completed"}
        except JobFailed as failure:
            end = {"status": "Failed", "FailureReason": str(failure)}
        except JobStopped:
            end = {"status": "Stopped"}
        except (ContainerError, ObjectStoreError, identity.RoleError) as error:
            text = str(error)
            end = {
                "status": "Failed",
                "FailureReason": text if text.startswith("ClientError: ") else f"ClientError: {text}",
            }
        except Exception as error:
            log.exception("job %s", job.arn)
            end = {"status": "Failed", "FailureReason": f"InternalServerError: {type(error).__name__}: {error}"}
        job.stop(grace=0.0)  # if something here went wrong while the programs ran
        shutil.rmtree(job.folder, ignore_errors=True)
        status = end.pop("status")
        if "FailureReason" in end:
            end["FailureReason"] = end["FailureReason"][:LONGEST_REASON]
        if job.time_is_up and job.kind == "Processing":
            end["ExitMessage"] = (
                f"The job was stopped: it ran longer than MaxRuntimeInSeconds ({job.record['StoppingCondition']['MaxRuntimeInSeconds']} s)"
            )
        with self._service.changed:
            ended = now()
            if job.kind == "Training":
                secondary = "MaxRuntimeExceeded" if job.time_is_up and status == "Stopped" else status
                self._set_secondary_status(job, secondary, end.get("FailureReason"))
                started = job.record.get("TrainingStartTime", ended)
                seconds = int((ended - started).total_seconds())
                end.update(TrainingTimeInSeconds=seconds, BillableTimeInSeconds=seconds)
            job.record.update(
                {**end, f"{job.kind}JobStatus": status, f"{job.kind}EndTime": ended, "LastModifiedTime": ended}
            )
            self._service.changed.notify_all()
        self._emit(job)

    def _process(self, job: Job) -> None:
        record = job.record
        inputs = [item["S3Input"] for item in record.get("ProcessingInputs", []) if "S3Input" in item]
        outputs = [output["S3Output"] for output in record.get("ProcessingOutputConfig", {}).get("Outputs", [])]
        for source in inputs:
            self._download_to_hosts(job, source)
        configured: tuple[str, ...] = (
            "ProcessingJobArn",
            "ProcessingJobName",
            "AppSpecification",
            "Environment",
            "ProcessingInputs",
        )
        configured += ("ProcessingOutputConfig", "ProcessingResources", "RoleArn", "StoppingCondition", "NetworkConfig")
        for host in job.hosts:
            for output in outputs:
                job.local(output["LocalPath"], host).mkdir(parents=True, exist_ok=True)
            config = job.local("/opt/ml/config", host)
            _write_json(config / "processingjobconfig.json", {key: record[key] for key in configured if key in record})
            _write_json(config / "resourceconfig.json", _hosts_config(job, host))

        application = record["AppSpecification"]
        self._set(job, "ProcessingStartTime", now())
        continuous = [output for output in outputs if output.get("S3UploadMode") == "Continuous"]
        synced = [(host, output["LocalPath"], output["S3Uri"]) for host in job.hosts for output in continuous]
        with self._synced(job, synced):
            failure = self._run_containers(
                job,
                image=application["ImageUri"],
                command=[
                    *application.get("ContainerEntrypoint", ["process"]),
                    *application.get("ContainerArguments", []),
                ],
                environment={"PROCESSING_JOB_NAME": job.name, "PROCESSING_JOB_ARN": job.arn},
                isolated=record.get("NetworkConfig", {}).get("EnableNetworkIsolation", False),
                lines_hook=None,
            )
        messages = {host: _read_start(job.local("/opt/ml/output/message", host)) for host in job.hosts}
        if message := next(filter(None, messages.values()), ""):
            self._set(job, "ExitMessage", message[:LONGEST_REASON])
        if failure is not None:
            # AWS writes the message into ExitMessage only and "See job logs" here; here the reason is where one looks first.
            raise JobFailed(_algorithm_error(job, failure, messages[failure.host]))
        if job.stop_requested or job.time_is_up:
            return
        # One host after the other: of two objects with the same key that of the last host stays, in every run.
        for host in job.hosts:
            for output in outputs:
                if output not in continuous:
                    folder = job.local(output["LocalPath"], host)
                    self._store.upload_folder(folder, output["S3Uri"], root=job.local("/opt/ml", host))

    def _download_to_hosts(self, job: Job, source: dict[str, Any]) -> None:
        """Put all objects of a processing input into every host's folder; if it is sharded, every Nth into each."""
        folders = [job.local(source["LocalPath"], host) for host in job.hosts]
        sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
        whole = job.folder / "sharded"
        for folder in [whole] if sharded else folders:
            self._store.download(source["S3Uri"], folder, data_type=source["S3DataType"], role=job.record["RoleArn"])
        if not sharded:
            return
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)  # also of a host that gets nothing
        keys = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
        for number, key in enumerate(keys):
            target = folders[number % len(folders)] / key
            target.parent.mkdir(parents=True, exist_ok=True)
            (whole / key).rename(target)
        shutil.rmtree(whole)

    def _train(self, job: Job) -> None:
        record, ml = job.record, job.local("/opt/ml")
        algorithm = record["AlgorithmSpecification"]
        self._set_secondary_status(job, "Downloading")
        channels = {}
        for channel in record.get("InputDataConfig", []):
            source = channel["DataSource"]["S3DataSource"]
            folder = ml / "input/data" / channel["ChannelName"]
            self._store.download(source["S3Uri"], folder, data_type=source["S3DataType"], role=record["RoleArn"])
            channels[channel["ChannelName"]] = {
                **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
                "TrainingInputMode": channel.get("InputMode", algorithm["TrainingInputMode"]),
                "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
        for folder_name in ("input/data", "model", "output/data"):
            (ml / folder_name).mkdir(parents=True, exist_ok=True)
        resources = record["ResourceConfig"]
        instance = {"current_instance_type": resources["InstanceType"], "current_group_name": "homogeneousCluster"}
        group = {
            "instance_group_name": "homogeneousCluster",
            "instance_type": resources["InstanceType"],
            "hosts": job.hosts,
        }
        _write_json(ml / "input/config/inputdataconfig.json", channels)
        _write_json(ml / "input/config/hyperparameters.json", record.get("HyperParameters", {}))
        _write_json(
            ml / "input/config/resourceconfig.json",
            {**_hosts_config(job, HOST_NAME), **instance, "instance_groups": [group]},
        )

        checkpoints = []
        if "CheckpointConfig" in record:
            path = record["CheckpointConfig"].get("LocalPath", "/opt/ml/checkpoints")
            uri = record["CheckpointConfig"]["S3Uri"]
            folder = job.local(path)
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(ObjectStoreError):  # a first run has no checkpoints yet
                self._store.download(uri, folder)
            checkpoints.append((HOST_NAME, path, uri))

        self._set(job, "TrainingStartTime", now())
        self._set_secondary_status(job, "Training")
        metrics = _Metrics(algorithm.get("MetricDefinitions", []))
        with self._synced(job, checkpoints):
            failure = self._run_containers(
                job,
                image=algorithm["TrainingImage"],
                command=[*algorithm.get("ContainerEntrypoint", ["train"]), *algorithm.get("ContainerArguments", [])],
                environment={"TRAINING_JOB_NAME": job.name, "TRAINING_JOB_ARN": job.arn},
                isolated=record.get("EnableNetworkIsolation", False),
                lines_hook=metrics,
            )
        if metrics.last:
            self._set(job, "FinalMetricDataList", list(metrics.last.values()))
        if failure is not None:
            raise JobFailed(_algorithm_error(job, failure, _read_start(ml / "output/failure")))
        # A stopped job's model is kept too, as SageMaker does.
        self._set_secondary_status(job, "Uploading")
        output = f"{record['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job.name}/output"
        if record["OutputDataConfig"].get("CompressionType") == "NONE":
            self._store.upload_folder(ml / "model", f"{output}/model/", root=ml)
            self._store.upload_folder(ml / "output/data", f"{output}/data/", root=ml)
            artifacts = f"{output}/model/"
        else:
            self._upload_archive(job, ml / "model", f"{output}/model.tar.gz")
            if any((ml / "output/data").iterdir()):
                self._upload_archive(job, ml / "output/data", f"{output}/output.tar.gz")
            artifacts = f"{output}/model.tar.gz"
        self._set(job, "ModelArtifacts", {"S3ModelArtifacts": artifacts})

    def _upload_archive(self, job: Job, folder: Path, uri: str) -> None:
        archive = job.folder / uri.rsplit("/", 1)[-1]
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name)
        self._store.upload_file(archive, uri)

    def _run_containers(
        self,
        job: Job,
        *,
        image: str,
        command: Sequence[str],
        environment: dict[str, str],
        isolated: bool,
        lines_hook: Any,
    ) -> ProgramFailure | None:
        """Run the job's program on every host to its end; returns the failure, if there was one."""
        settings = self._service.settings
        folder = image_folder(image, settings.images)
        environment = {"AWS_REGION": settings.region, "AWS_DEFAULT_REGION": settings.region, **environment}
        if not isolated:  # with network isolation SageMaker gives a container no credentials either
            environment |= {
                "AWS_ENDPOINT_URL": settings.url,
                **identity.assume(job.record["RoleArn"], PRINCIPAL),
            }
        environment |= job.record.get("Environment", {})
        last_lines = dict.fromkeys(job.hosts, "")

        def spec(host: str) -> ContainerSpec:
            group = f"/aws/sagemaker/{job.kind}Jobs"
            stream = LogStream(group, f"{job.name}/{host}-{int(time.time())}", settings.account, settings.region)

            def on_lines(lines: list[str]) -> None:
                last_lines[host] = next((line for line in reversed(lines) if line.strip()), last_lines[host])
                if lines_hook is not None:
                    lines_hook(lines)
                stream.write(lines)

            log_name = f"{job.name}.log" if len(job.hosts) == 1 else f"{job.name}.{host}.log"
            return ContainerSpec(
                image=folder,
                command=command,
                folder=job.local("/opt/ml", host),
                environment=environment,
                output=settings.root / "logs" / f"{job.kind}Jobs" / log_name,
                host=host,
                hosts=job.hosts,
                isolated=isolated,
                on_lines=on_lines,
            )

        specs = [spec(host) for host in job.hosts]
        with self._service.changed:
            if job.stop_requested or self._closed:
                raise JobStopped
            for host_spec in specs:
                job.containers[host_spec.host] = Container(host_spec)
        return self._wait_for_programs(job, last_lines)

    @staticmethod
    def _wait_for_programs(job: Job, last_lines: dict[str, str]) -> ProgramFailure | None:
        """Wait until every host's program has ended. The first that fails ends the others and is returned.

        A program that is stopped, because the job is or because its time is up (then job.time_is_up is set), did not fail.
        """
        ended: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        waiters = [
            threading.Thread(target=lambda host, container: ended.put((host, container.wait())), args=item, daemon=True)
            for item in job.containers.items()
        ]
        for waiter in waiters:
            waiter.start()
        deadline = time.monotonic() + job.record["StoppingCondition"].get("MaxRuntimeInSeconds", 86400)
        failure = None
        try:
            for _ in waiters:
                host, code = ended.get(timeout=max(0.0, deadline - time.monotonic()))
                if code != 0:
                    failure = None if job.stop_requested else ProgramFailure(host, code, last_lines[host])
                    break
        except queue.Empty:
            job.time_is_up = True
        if (failure or job.time_is_up) and not job.stop_requested:
            job.stop(STOP_GRACE_SECONDS)
        for waiter in waiters:
            waiter.join()
        return failure

    @contextlib.contextmanager
    def _synced(self, job: Job, folders: list[tuple[str, str, str]]) -> Iterator[None]:
        """Keep S3 in step with folders, each (host, path in its container, URI), while the body runs, and at its end."""
        synced = [
            _SyncedFolder(self._store, job.local(path, host), uri, job.local("/opt/ml", host))
            for host, path, uri in folders
        ]
        if not synced:
            yield
            return
        stop = threading.Event()

        def keep_in_step() -> None:
            while not stop.wait(SYNC_SECONDS):
                for folder in synced:
                    folder.upload_settled()

        thread = threading.Thread(target=keep_in_step, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        for folder in synced:
            folder.upload_all()


class _SyncedFolder:
    """A folder whose new and changed files go to S3 while the job runs."""

    def __init__(self, store: ObjectStore, folder: Path, uri: str, root: Path) -> None:
        self._store, self._folder, self._uri, self._root = store, folder, uri.rstrip("/"), root
        self._seen: dict[Path, tuple[int, int]] = {}
        self._uploaded = self._states()

    def upload_settled(self) -> None:
        """Upload the files that did not change since the last look: what is still being written waits."""
        states = self._states()
        self._upload({path: state for path, state in states.items() if self._seen.get(path) == state})
        self._seen = states

    def upload_all(self) -> None:
        self._upload(self._states())

    def _upload(self, states: dict[Path, tuple[int, int]]) -> None:
        for path, state in states.items():
            if self._uploaded.get(path) != state:
                with contextlib.suppress(FileNotFoundError):  # the job may delete an old checkpoint at any time
                    self._store.upload_copy(path, f"{self._uri}/{path.relative_to(self._folder)}", self._root)
                    self._uploaded[path] = state

    def _states(self) -> dict[Path, tuple[int, int]]:
        states = {}
        for path in self._folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    states[path] = (path.stat().st_mtime_ns, path.stat().st_size)
        return states


class _Metrics:
    """The last value of each metric that the job's lines show, as FinalMetricDataList wants it."""

    def __init__(self, definitions: list[dict[str, str]]) -> None:
        self._patterns = [(definition["Name"], re.compile(definition["Regex"])) for definition in definitions]
        self.last: dict[str, dict[str, Any]] = {}

    def __call__(self, lines: list[str]) -> None:
        for line in lines:
            for name, pattern in self._patterns:
                for match in pattern.finditer(line):
                    with contextlib.suppress(ValueError, IndexError):  # a line that only looks like the metric
                        self.last[name] = {"MetricName": name, "Value": float(match.group(1)), "Timestamp": now()}


def _algorithm_error(job: Job, failure: ProgramFailure, message: str) -> str:
    """The message that the program left, or else its last line; shortened so that the exit code is always shown."""
    text = message or (
        f"See job logs for more information. Last line: {failure.last_line}"
        if failure.last_line
        else "See job logs for more information"
    )
    where = f"{failure.host}: " if len(job.hosts) > 1 else ""
    ending = f", exit code: {failure.code}"
    return f"AlgorithmError: {where}{text}"[: LONGEST_REASON - len(ending)] + ending


def _hosts_config(job: Job, host: str) -> dict[str, Any]:
    """What resourceconfig.json tells a container about the job's hosts."""
    return {"current_host": host, "hosts": job.hosts, "network_interface_name": "lo"}


def _read_start(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(errors="replace") as file:
        return file.read(4 * LONGEST_REASON).strip()


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValidationException("; ".join(problems))


def _unsupported_in_processing(request: Request) -> list[str]:
    """What this server cannot run, or SageMaker would refuse, in a processing request; each named."""
    problems = []
    count = request["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
    if count > MOST_HOSTS:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
        problems.append(
            f"ProcessingResources.ClusterConfig.InstanceCount is {count}; local AWS runs up to {MOST_HOSTS} hosts of a "
            f"processing job, which all share this machine ({os.cpu_count()} CPUs, {memory} GiB of memory)"
        )
    for item in request.get("ProcessingInputs", []):
        if "S3Input" not in item:
            problems.append(f"ProcessingInputs '{item['InputName']}' has no S3Input; local AWS reads from S3 only")
        elif "LocalPath" not in item["S3Input"]:
            problems.append(f"ProcessingInputs '{item['InputName']}' has no LocalPath")
    outputs = request.get("ProcessingOutputConfig", {}).get("Outputs", [])
    problems += [
        f"ProcessingOutputConfig.Outputs '{output['OutputName']}' has no S3Output with a LocalPath; local AWS writes to S3 only"
        for output in outputs
        if "LocalPath" not in output.get("S3Output", {})
    ]
    places = [item.get("S3Input", {}).get("LocalPath") for item in request.get("ProcessingInputs", [])]
    places += [output.get("S3Output", {}).get("LocalPath") for output in outputs]
    problems += [
        f"LocalPath '{path}' is not below /opt/ml/processing"
        for path in places
        if path is not None and not _below(path, "/opt/ml/processing")
    ]
    names = [item["InputName"] for item in request.get("ProcessingInputs", [])] + [
        output["OutputName"] for output in outputs
    ]
    problems += [
        f"the name '{name}' is used twice in ProcessingInputs and Outputs"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    return problems


def _unsupported_in_training(request: Request) -> list[str]:
    """What this server cannot run, or SageMaker would refuse, in a training request; each named."""
    problems = []
    algorithm, resources = request.get("AlgorithmSpecification", {}), request.get("ResourceConfig", {})
    if "TrainingImage" not in algorithm:
        problems.append(
            "AlgorithmSpecification.TrainingImage is missing; local AWS runs images, not marketplace algorithms"
        )
    if "InstanceType" not in resources or resources.get("InstanceCount") != 1:
        problems.append(
            f"ResourceConfig has InstanceType {resources.get('InstanceType')} and InstanceCount {resources.get('InstanceCount')}; "
            "local AWS runs a training job on 1 instance of a type that is named"
        )
    if "StoppingCondition" not in request:
        problems.append("StoppingCondition is missing")
    modes = {"AlgorithmSpecification.TrainingInputMode": algorithm.get("TrainingInputMode")}
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    problems += [f"InputDataConfig has two channels '{name}'" for name in sorted(set(names)) if names.count(name) > 1]
    for channel in request.get("InputDataConfig", []):
        name = f"InputDataConfig channel '{channel['ChannelName']}'"
        modes[f"{name} InputMode"] = channel.get("InputMode")
        if "S3DataSource" not in channel["DataSource"]:
            problems.append(f"{name} has no S3DataSource; local AWS reads from S3 only")
        if channel.get("CompressionType", "None") != "None":
            problems.append(
                f"{name} has CompressionType {channel['CompressionType']}; SageMaker unpacks in Pipe mode only"
            )
    problems += [f"{where} is Pipe; local AWS has File and FastFile" for where, mode in modes.items() if mode == "Pipe"]
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            problems.append(f"MetricDefinitions '{definition['Name']}' has a Regex that is not valid: {error}")
    checkpoint = request.get("CheckpointConfig", {}).get("LocalPath", "/opt/ml/checkpoints")
    if not _below(checkpoint, "/opt/ml"):
        problems.append(f"CheckpointConfig.LocalPath '{checkpoint}' is not below /opt/ml")
    return problems


def _below(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder) and ".." not in Path(path).parts
