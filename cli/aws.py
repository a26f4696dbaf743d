"""One deployment as the commands see it: its settings, its AWS clients, and the resources that its stacks made."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cli.console import CommandError
from config.settings import Settings, load

REPOSITORY = Path(__file__).parent.parent
STEPS_PYTHON = REPOSITORY / ".venv-steps" / "bin" / "python"  # where torch and the steps' packages are
LOCAL_STATE = REPOSITORY / "build" / "local_aws"  # of `make local`
KEPT_STATE = REPOSITORY / "build" / "local_aws_kept"  # of `finetune local --keep`
ADDRESS_FILE = "address.json"  # in the state folder while local AWS runs: where it can be reached

# Local AWS knows no secrets: any keys do, but the clients insist on having some.
LOCAL_CREDENTIALS = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}


# What a command works on; with serving places the two are in accounts or regions of their own.
Needs = Literal["pipelines", "endpoint", "either"]


@dataclass(frozen=True)
class Deployment:
    """A deployed environment: `Deployment(load("prod"))` on AWS, with `endpoint_url` on local AWS."""

    settings: Settings
    endpoint_url: str | None = None

    @classmethod
    def named(cls, environment: str, needs: Needs = "pipelines") -> "Deployment":
        """The deployment of `environment`; `local` is the local AWS that runs now.

        Raises CommandError if what the command needs is in another account or region of it.
        """
        deployment = cls(load(environment), local_address() if environment == "local" else None)
        settings = deployment.settings
        if needs == "pipelines" and not settings.trains:
            whole = environment.rpartition("/")[0]
            raise CommandError(
                f"{environment} only serves what account {settings.registry.account} registers; use -e {whole} for this"
            )
        if needs == "endpoint" and not settings.serves:
            places = " or ".join(f"-e {environment}/{name}" for name in settings.serving)
            raise CommandError(f"{settings.name} is not served in the account of its pipelines; use {places}")
        return deployment

    @cached_property
    def session(self) -> Any:
        if self.endpoint_url:
            return boto3.Session(region_name=self.settings.region, **LOCAL_CREDENTIALS)
        return boto3.Session(region_name=self.settings.region)

    def client(self, service: str, config: Config | None = None) -> Any:
        return self.session.client(service, endpoint_url=self.endpoint_url, config=config)

    @cached_property
    def s3(self) -> Any:
        return self.client("s3")

    @cached_property
    def sagemaker(self) -> Any:
        return self.client("sagemaker")

    @cached_property
    def runtime(self) -> Any:
        # The service itself gives up after 60 s (a stream after 8 minutes); a second try would hide the first failure.
        return self.client("sagemaker-runtime", Config(read_timeout=70, retries={"max_attempts": 1}))

    def invocation(self, request: dict[str, Any]) -> dict[str, Any]:
        """InvokeEndpoint's parameters for `request`: the endpoint, and the component on it where there is one."""
        component = self.settings.inference_component_name
        return {
            "EndpointName": self.settings.endpoint_name,
            "ContentType": "application/json",
            "Body": json.dumps(request),
            **({"InferenceComponentName": component} if component else {}),
        }

    def invoke(self, request: dict[str, Any]) -> Any:
        """The endpoint's answer to `request`."""
        return json.loads(self.runtime.invoke_endpoint(**self.invocation(request))["Body"].read())

    def output(self, stack: str, key: str) -> str:
        """Value of an output of the stack `<name>-<stack>`."""
        name = self.settings.stack_name(stack)
        try:
            stacks = self.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        except (ClientError, BotoCoreError) as error:
            raise CommandError(
                f"cannot read the stack {name}: {error}\nDeploy first: see 'make deploy' or 'make local'"
            ) from error
        outputs = {output["OutputKey"]: output["OutputValue"] for output in stacks[0].get("Outputs", [])}
        if key not in outputs:
            raise CommandError(f"the stack {name} has no output {key}; deploy this version again")
        return str(outputs[key])

    @property
    def raw_bucket(self) -> str:
        return self.output("storage", "RawBucketName")

    @property
    def artifact_bucket(self) -> str:
        return self.output("storage", "ArtifactBucketName")


def local_address(state: Path = LOCAL_STATE) -> str:
    """URL of the local AWS that runs now with the folder `state`."""
    try:
        return str(json.loads((state / ADDRESS_FILE).read_text(encoding="utf-8"))["url"])
    except FileNotFoundError:
        raise CommandError("local AWS does not run; start it with 'make local' in another terminal") from None
