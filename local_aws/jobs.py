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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from local_aws import identity, networks, role_use
from local_aws.authorization import Caller
from local_aws.containers import (
    HOST_NAME,
    Container,
    ContainerError,
    ContainerSpec,
    LogStream,
    PeerNetwork,
    image_folder,
    repository_of,
    stop_together,
)
from local_aws.object_store import ObjectStore, ObjectStoreError
from local_aws.request_actions import Place
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
END_SECONDS = 10.0  # from the end of a job's programs to the end of the job, at the end of the server
SYNC_SECONDS = 1.0  # how often checkpoints and continuous outputs are looked at
LONGEST_REASON = 1024  # characters of FailureReason and ExitMessage
PACKAGE = Path(__file__).parent
# What an image's own entrypoint does when SageMaker starts it with `train`. Any other image brings a program `train`.
TRAINING_MODULES = {"huggingface-pytorch-training": "local_aws.training_toolkit"}
MOST_HOSTS = 8  # of a job: its hosts share this machine

SECONDARY_STATUS_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "Interrupted": "The spot instances were reclaimed",
    "Restarting": "Preparing new instances to go on from the last checkpoint",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job exceeded MaxWaitTimeInSeconds provided",
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
        resources = record["ProcessingResources"]["ClusterConfig"] if kind == "Processing" else record["ResourceConfig"]
        count = resources["InstanceCount"]
        self.hosts = [f"algo-{number}" for number in range(1, count + 1)]
        self.containers: dict[str, Container] = {}  # by host
        self.stop_requested = False
        self.time_is_up = ""  # or the secondary status that says which time
        self.interrupted = False  # its spot instances were reclaimed, and it has no new ones yet
        self.seconds_on_instances = 0.0  # while its program ran, on reclaimed ones too

    @property
    def name(self) -> str:
        return str(self.record[f"{self.kind}JobName"])

    @property
    def arn(self) -> str:
        return str(self.record[f"{self.kind}JobArn"])

    @property
    def caller(self) -> Caller:
        """The job as who calls: its role."""
        return Caller(self.record["RoleArn"], self.name, networks.subnets_of(self.vpc))

    @property
    def vpc(self) -> dict[str, Any] | None:
        """VpcConfig: where the hosts' network interfaces are."""
        config = self.record.get("NetworkConfig", {}) if self.kind == "Processing" else self.record
        found: dict[str, Any] | None = config.get("VpcConfig")
        return found

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

    def interrupt(self, name: str) -> None:
        """Reclaim the instances of a managed spot training job, as EC2 does: SIGTERM, two minutes, SIGKILL; then it restarts.

        Raises ValidationException unless there is such a job and its program runs.
        """
        job = self._find("Training", name)
        with self._service.changed:
            if not job.record.get("EnableManagedSpotTraining"):
                raise ValidationException(
                    f"the training job '{name}' has no spot instances; set EnableManagedSpotTraining in its request"
                )
            running = [container for container in job.containers.values() if container.running]
            if job.status != "InProgress" or job.interrupted or not running:
                raise ValidationException(
                    f"the training job '{name}' is {job.record['SecondaryStatus']}, and only one whose program runs "
                    "can be interrupted; wait until its SecondaryStatus is Training"
                )
            job.interrupted = True
        threading.Thread(target=stop_together, args=(running, STOP_GRACE_SECONDS), daemon=True).start()

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

    def state(self) -> list[Job]:
        """After `shutdown`: the jobs, without the containers that they had."""
        with self._service.changed:
            self._service.changed.wait_for(lambda: all(job.ended for job in self._jobs.values()), END_SECONDS)
            for job in self._jobs.values():
                if not job.ended:
                    job.record[f"{job.kind}JobStatus"] = "Stopped"
                job.containers = {}
            return list(self._jobs.values())

    def take_over(self, jobs: list[Job]) -> None:
        """Know the jobs of another one's `state`."""
        self._jobs.update({(job.kind, job.name): job for job in jobs})

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
            records = [dict(job.record) for (of, _), job in self._jobs.items() if of == kind]
            jobs, token = page(records, request, name=f"{kind}JobName", status=f"{kind}JobStatus")
            return {f"{kind}JobSummaries": copy.deepcopy(jobs), **token}  # a page of them, not all

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
            self._use_role(job)
            self._make_hosts(job)
            work(job)
            end = {"status": "Stopped" if job.stop_requested or job.time_is_up else "Completed"}
        except JobFailed as failure:
            end = {"status": "Failed", "FailureReason": str(failure)}
        except JobStopped:
            end = {"status": "Stopped"}
        except (ContainerError, ObjectStoreError, identity.RoleError, role_use.RoleUseDenied) as error:
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
                secondary = job.time_is_up if job.time_is_up and status == "Stopped" else status
                seconds = int(job.seconds_on_instances)
                self._set_secondary_status(job, secondary, end.get("FailureReason"))
                # A spot price would make the billable time less; this machine has no prices.
                end.update(TrainingTimeInSeconds=seconds, BillableTimeInSeconds=seconds)
            job.record.update(
                {**end, f"{job.kind}JobStatus": status, f"{job.kind}EndTime": ended, "LastModifiedTime": ended}
            )
            self._service.changed.notify_all()
        self._emit(job)

    def _use_role(self, job: Job) -> None:
        """What SageMaker does with the job's role before its program starts. Raises RoleUseDenied."""
        settings, record = self._service.settings, job.record
        place = Place(settings.region, settings.account)
        if job.kind == "Processing":
            image = record["AppSpecification"]["ImageUri"]
        else:
            image = record["AlgorithmSpecification"].get("TrainingImage", "")
        streams = [f"{job.name}/{host}" for host in job.hosts]
        logs = role_use.of_logs(place, f"/aws/sagemaker/{job.kind}Jobs", streams)
        if job.kind == "Processing":
            volume, output = record["ProcessingResources"]["ClusterConfig"], record.get("ProcessingOutputConfig", {})
        else:
            volume, output = record["ResourceConfig"], record["OutputDataConfig"]
        keys = role_use.of_keys(volume.get("VolumeKmsKeyId"), output.get("KmsKeyId"))
        uses = [*role_use.of_network(place, job.vpc), *keys, *role_use.of_image(image), *logs]
        role_use.require(job.caller, uses)

    @staticmethod
    def _make_hosts(job: Job) -> None:
        """Give every host of the job an empty /opt/ml."""
        shutil.rmtree(job.folder, ignore_errors=True)
        for host in job.hosts:
            job.local("/opt/ml/output", host).mkdir(parents=True)

    def _process(self, job: Job) -> None:
        record = job.record
        inputs = [item["S3Input"] for item in record.get("ProcessingInputs", []) if "S3Input" in item]
        outputs = [output["S3Output"] for output in record.get("ProcessingOutputConfig", {}).get("Outputs", [])]
        for source in inputs:
            self._download_to_hosts(job, source, source["LocalPath"])
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
                    root = job.local("/opt/ml", host)
                    self._store.upload_folder(folder, output["S3Uri"], root=root, caller=job.caller)

    def _download_to_hosts(self, job: Job, source: dict[str, Any], path: str) -> None:
        """Put all objects of an input into the folder `path` of every host; if it is sharded, every Nth into each."""
        folders = [job.local(path, host) for host in job.hosts]
        sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
        whole = job.folder / "sharded"
        for folder in [whole] if sharded else folders:
            self._store.download(source["S3Uri"], folder, data_type=source["S3DataType"], caller=job.caller)
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
        failure = self._train_on_instances(job)
        while job.interrupted and not (job.stop_requested or job.time_is_up):
            self._set_secondary_status(job, "Interrupted")
            self._emit(job)
            job.interrupted = False
            self._set_secondary_status(job, "Restarting")
            self._make_hosts(job)
            failure = self._train_on_instances(job)
        if failure is not None:
            raise JobFailed(
                _algorithm_error(job, failure, _read_start(job.local("/opt/ml/output/failure", failure.host)))
            )
        # A stopped job's model is kept too, as SageMaker does.
        self._set_secondary_status(job, "Uploading")
        self._upload_model(job)

    def _train_on_instances(self, job: Job) -> ProgramFailure | None:
        """Run the program on fresh hosts, until it ends or they are reclaimed; returns the failure, if there was one."""
        record = job.record
        algorithm = record["AlgorithmSpecification"]
        self._set_secondary_status(job, "Downloading")
        for channel in record.get("InputDataConfig", []):
            folder = f"/opt/ml/input/data/{channel['ChannelName']}"
            self._download_to_hosts(job, channel["DataSource"]["S3DataSource"], folder)
        for host in job.hosts:
            _write_training_config(job, host)
        checkpoints = self._download_checkpoints(job)

        self._set_secondary_status(job, "Training")
        metrics = _Metrics(algorithm.get("MetricDefinitions", []))
        # What an image's own entrypoint is; a request that names another does not need it.
        own = "ContainerEntrypoint" not in algorithm
        module = TRAINING_MODULES.get(repository_of(algorithm["TrainingImage"])) if own else None
        if "TrainingStartTime" not in record:
            self._set(job, "TrainingStartTime", now())
        try:
            with self._synced(job, checkpoints, leave_out=_is_unfinished):
                failure = self._run_containers(
                    job,
                    image=algorithm["TrainingImage"],
                    command=[
                        *algorithm.get("ContainerEntrypoint", ["python3", "-m", module] if module else ["train"]),
                        *algorithm.get("ContainerArguments", []),
                    ],
                    environment={
                        "TRAINING_JOB_NAME": job.name,
                        "TRAINING_JOB_ARN": job.arn,
                        **({"PYTHONPATH": str(PACKAGE.parent)} if module else {}),
                    },
                    visible=[PACKAGE] if module else [],
                    isolated=record.get("EnableNetworkIsolation", False),
                    lines_hook=metrics,
                )
        finally:
            if metrics.last:
                known = {metric["MetricName"]: metric for metric in record.get("FinalMetricDataList", [])}
                self._set(job, "FinalMetricDataList", list({**known, **metrics.last}.values()))
        return failure

    def _download_checkpoints(self, job: Job) -> list[tuple[str, str, str]]:
        """Put what the job's checkpoint prefix holds into every host; returns (host, path in its container, URI)."""
        if "CheckpointConfig" not in job.record:
            return []
        path = job.record["CheckpointConfig"].get("LocalPath", "/opt/ml/checkpoints")
        uri = f"{job.record['CheckpointConfig']['S3Uri'].rstrip('/')}/"
        for host in job.hosts:
            job.local(path, host).mkdir(parents=True, exist_ok=True)
            if self._store.holds(uri, caller=job.caller):  # a first run has no checkpoints yet
                self._store.download(uri, job.local(path, host), caller=job.caller)
        return [(host, path, uri) for host in job.hosts]

    def _upload_model(self, job: Job) -> None:
        """Upload the model and the output data of all hosts; of two files with the same name the first host's stays."""
        output = f"{job.record['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job.name}/output"
        model, data = _files_of_all_hosts(job, "/opt/ml/model"), _files_of_all_hosts(job, "/opt/ml/output/data")
        if job.record["OutputDataConfig"].get("CompressionType") == "NONE":
            for folder, files in (("model", model), ("data", data)):
                for name, (path, root) in files.items():
                    self._store.upload_file(path, f"{output}/{folder}/{name}", root=root, caller=job.caller)
            artifacts = f"{output}/model/"
        else:
            self._upload_archive(job, model, f"{output}/model.tar.gz")
            if data:
                self._upload_archive(job, data, f"{output}/output.tar.gz")
            artifacts = f"{output}/model.tar.gz"
        self._set(job, "ModelArtifacts", {"S3ModelArtifacts": artifacts})

    def _upload_archive(self, job: Job, files: dict[str, tuple[Path, Path]], uri: str) -> None:
        archive = job.folder / uri.rsplit("/", 1)[-1]
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for name, (path, _) in files.items():
                tar.add(path, name)
        self._store.upload_file(archive, uri, caller=job.caller)

    def _run_containers(
        self,
        job: Job,
        *,
        image: str,
        command: Sequence[str],
        environment: dict[str, str],
        isolated: bool,
        lines_hook: Any,
        visible: Sequence[Path] = (),
    ) -> ProgramFailure | None:
        """Run the job's program on every host to its end; returns the failure, if there was one."""
        settings = self._service.settings
        folder = image_folder(image, settings.images)
        environment = {"AWS_REGION": settings.region, "AWS_DEFAULT_REGION": settings.region, **environment}
        if not isolated:  # with network isolation SageMaker gives a container no credentials either
            environment |= {
                "AWS_ENDPOINT_URL": settings.url,
                **identity.assume(job.record["RoleArn"], PRINCIPAL, job.name, job.caller.subnets),
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
                network=network,
                on_lines=on_lines,
                visible=visible,
                hidden=settings.hidden,
            )

        # Network isolation lets the hosts of a training job reach each other, and those of a processing job not even that.
        network = PeerNetwork() if isolated and job.kind == "Training" and len(job.hosts) > 1 else None
        try:
            specs = [spec(host) for host in job.hosts]
            for host_spec in specs:
                if job.stop_requested or self._closed:
                    raise JobStopped
                # Without the lock: a process takes its time to start, and every request would wait for it.
                container = Container(host_spec)
                with self._service.changed:
                    job.containers[host_spec.host] = container
                    too_late = job.stop_requested or self._closed
                if too_late:  # whoever asked to stop has not seen this container
                    stop_together([container], SHUTDOWN_GRACE_SECONDS if self._closed else STOP_GRACE_SECONDS)
            return self._wait_for_programs(job, last_lines)
        finally:
            if network is not None:
                network.close()

    def _wait_for_programs(self, job: Job, last_lines: dict[str, str]) -> ProgramFailure | None:
        """Wait until every host's program has ended. The first that fails ends the others and is returned.

        A program that is stopped did not fail: because the job is, because its instances are reclaimed, or because its
        time is up (then job.time_is_up is set).
        """
        ended: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        waiters = [
            threading.Thread(target=lambda host, container: ended.put((host, container.wait())), args=item, daemon=True)
            for item in job.containers.items()
        ]
        for waiter in waiters:
            waiter.start()
        started = time.monotonic()
        seconds, then = self._time_left(job)
        failure = None
        try:
            for _ in waiters:
                host, code = ended.get(timeout=max(0.0, started + seconds - time.monotonic()))
                if code != 0:
                    stopped = job.stop_requested or job.interrupted
                    failure = None if stopped else ProgramFailure(host, code, last_lines[host])
                    break
        except queue.Empty:
            job.time_is_up = then
            if job.kind == "Training" and not job.stop_requested:
                self._set(job, "TrainingJobStatus", "Stopping")
                self._set_secondary_status(job, "Stopping")
        if (failure or job.time_is_up) and not job.stop_requested:
            job.stop(STOP_GRACE_SECONDS)
        for waiter in waiters:
            waiter.join()
        job.seconds_on_instances += time.monotonic() - started
        return failure

    @staticmethod
    def _time_left(job: Job) -> tuple[float, str]:
        """For how many seconds the job's program may still run, and the secondary status after them.

        A spot job has two times: that of its program, and that of its program and of all waiting for instances.
        """
        condition = job.record["StoppingCondition"]
        times = [(condition.get("MaxRuntimeInSeconds", 86400) - job.seconds_on_instances, "MaxRuntimeExceeded")]
        if "MaxWaitTimeInSeconds" in condition:
            waited = (now() - job.record["CreationTime"]).total_seconds()
            times.append((condition["MaxWaitTimeInSeconds"] - waited, "MaxWaitTimeExceeded"))
        return min(times)

    @contextlib.contextmanager
    def _synced(
        self,
        job: Job,
        folders: list[tuple[str, str, str]],
        leave_out: Callable[[Path], bool] = lambda path: False,
    ) -> Iterator[None]:
        """Keep S3 in step with folders, each (host, path in its container, URI), while the body runs, and at its end.

        `leave_out` is asked about a file's path below its folder.
        """
        synced = [
            _SyncedFolder(self._store, job.local(path, host), uri, job.local("/opt/ml", host), leave_out, job.caller)
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
    """A folder whose new and changed files go to S3 while the job runs. What is deleted in it stays in S3."""

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        uri: str,
        root: Path,
        leave_out: Callable[[Path], bool],
        caller: Caller,
    ) -> None:
        self._store, self._folder, self._uri, self._root = store, folder, uri.rstrip("/"), root
        self._leave_out, self._caller = leave_out, caller
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
                try:
                    self._store.upload_copy(
                        path, f"{self._uri}/{path.relative_to(self._folder)}", self._root, self._caller
                    )
                except (FileNotFoundError, ObjectStoreError):
                    if os.path.lexists(path):
                        raise
                    continue  # the job may delete or rename an old checkpoint at any time
                self._uploaded[path] = state

    def _states(self) -> dict[Path, tuple[int, int]]:
        states = {}
        for path in self._folder.rglob("*"):
            if self._leave_out(path.relative_to(self._folder)):
                continue
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


def _is_unfinished(path: Path) -> bool:
    """Whether a checkpoint's path says that it is still being written: the program renames it when it is whole."""
    return any(part.startswith(".") or part.endswith(".tmp") for part in path.parts)


def _files_of_all_hosts(job: Job, folder: str) -> dict[str, tuple[Path, Path]]:
    """Name below `folder` -> (file, its host's /opt/ml); of two with the same name the first host's."""
    files: dict[str, tuple[Path, Path]] = {}
    for host in job.hosts:
        below = job.local(folder, host)
        for path in sorted(below.rglob("*")):
            if path.is_file() or path.is_symlink():
                files.setdefault(path.relative_to(below).as_posix(), (path, job.local("/opt/ml", host)))
    return files


def _write_training_config(job: Job, host: str) -> None:
    """Make the folders and files that a training container finds besides its channels."""
    ml, record = job.local("/opt/ml", host), job.record
    for folder in ("input/data", "model", "output/data"):
        (ml / folder).mkdir(parents=True, exist_ok=True)
    channels = {}
    for channel in record.get("InputDataConfig", []):
        source = channel["DataSource"]["S3DataSource"]
        mode = channel.get("InputMode", record["AlgorithmSpecification"]["TrainingInputMode"])
        channels[channel["ChannelName"]] = {
            **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
            "TrainingInputMode": mode,
            "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
            "RecordWrapperType": channel.get("RecordWrapperType", "None"),
        }
    group, instance_type = "homogeneousCluster", record["ResourceConfig"]["InstanceType"]
    resources = {
        **_hosts_config(job, host),
        "current_instance_type": instance_type,
        "current_group_name": group,
        "instance_groups": [{"instance_group_name": group, "instance_type": instance_type, "hosts": job.hosts}],
    }
    _write_json(ml / "input/config/inputdataconfig.json", channels)
    _write_json(ml / "input/config/hyperparameters.json", record.get("HyperParameters", {}))
    _write_json(ml / "input/config/resourceconfig.json", resources)


def _too_many_hosts(field: str, count: int) -> list[str]:
    if count <= MOST_HOSTS:
        return []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    return [
        f"{field} is {count}; local AWS runs up to {MOST_HOSTS} hosts of a job, which all share this machine "
        f"({os.cpu_count()} CPUs, {memory} GiB of memory)"
    ]


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
    cluster, where = request["ProcessingResources"]["ClusterConfig"], "ProcessingResources.ClusterConfig"
    problems = _too_many_hosts(f"{where}.InstanceCount", cluster["InstanceCount"])
    volume_key = cluster.get("VolumeKmsKeyId")
    problems += role_use.refused_volume_key(f"{where}.VolumeKmsKeyId", cluster["InstanceType"], volume_key)
    problems += networks.problems("NetworkConfig.VpcConfig", request.get("NetworkConfig", {}).get("VpcConfig"))
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
    count = resources.get("InstanceCount", 0)
    if "InstanceType" not in resources or count < 1:
        problems.append(
            f"ResourceConfig has InstanceType {resources.get('InstanceType')} and InstanceCount {count}; "
            "local AWS runs a training job on 1 instance or more of a type that is named"
        )
    problems += _too_many_hosts("ResourceConfig.InstanceCount", count)
    instance_type, volume_key = str(resources.get("InstanceType")), resources.get("VolumeKmsKeyId")
    problems += role_use.refused_volume_key("ResourceConfig.VolumeKmsKeyId", instance_type, volume_key)
    problems += networks.problems("VpcConfig", request.get("VpcConfig"))
    if "StoppingCondition" not in request:
        problems.append("StoppingCondition is missing")
    problems += _problems_of_spot(request)
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


def _problems_of_spot(request: Request) -> list[str]:
    condition = request.get("StoppingCondition", {})
    runtime, wait = condition.get("MaxRuntimeInSeconds", 86400), condition.get("MaxWaitTimeInSeconds")
    if not request.get("EnableManagedSpotTraining"):
        return [] if wait is None else ["MaxWaitTimeInSeconds is only allowed with EnableManagedSpotTraining"]
    problems = []
    if wait is None or wait < runtime:
        problems.append(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds "
            f"(MaxWaitTimeInSeconds is {wait}, MaxRuntimeInSeconds {runtime})"
        )
    if keep_alive := request.get("ResourceConfig", {}).get("KeepAlivePeriodInSeconds", 0):
        problems.append(
            f"KeepAlivePeriodInSeconds is {keep_alive}; a warm pool is not supported with EnableManagedSpotTraining"
        )
    return problems


def _below(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder) and ".." not in Path(path).parts
