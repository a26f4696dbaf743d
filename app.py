"""Configuration -> stacks. The only place that reads the outside: the environment's name and the checkout's path.

npx cdk deploy --all -c environment=prod
npx cdk deploy --all -c environment=accounts/eu     # the serving place `eu` of accounts.yaml
"""

from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch

from config.jumpstart_lock import LockError
from config.settings import Settings, SettingsError, load
from stacks.components.step_code import build_zip
from stacks.network import Network, NetworkStack
from stacks.operations import OperationsStack
from stacks.pipeline import PipelineStack
from stacks.serving import ServingStack
from stacks.storage import StorageStack
from stacks.triggers import TriggersStack

REPOSITORY = Path(__file__).parent


def build(app: cdk.App, settings: Settings) -> None:
    """Add the stacks of one account and region to `app`: those of the pipelines, or of a serving place."""
    # Without an account the stacks stay environment-agnostic, so that synth needs no credentials.
    env = cdk.Environment(account=settings.account, region=settings.region)
    try:
        step_code_zip = build_zip(
            REPOSITORY, REPOSITORY / "build" / "step_packages", REPOSITORY / "build" / "step_code"
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None

    def named(stack: str) -> tuple[cdk.App, str]:
        return app, settings.stack_name(stack)

    storage = StorageStack(*named("storage"), settings=settings, env=env)
    artifact_bucket, key = storage.artifact_bucket, storage.key
    network = None
    if settings.network is not None:
        network = Network.of_the_user(settings.network)
        if settings.network.is_created:
            network = NetworkStack(*named("network"), settings=settings, key=key, env=env).network
    alarms: list[cloudwatch.IAlarm] = []
    if settings.trains:
        pipeline = PipelineStack(
            *named("pipeline"),
            settings=settings,
            raw_bucket=storage.raw_bucket,
            artifact_bucket=artifact_bucket,
            key=key,
            step_code_zip=step_code_zip,
            network=network,
            env=env,
        )
        triggers = TriggersStack(
            *named("triggers"),
            settings=settings,
            raw_bucket=storage.raw_bucket,
            key=key,
            finetune_pipeline=pipeline.finetune_pipeline,
            deploy_pipeline=pipeline.deploy_pipeline,
            monitor_pipeline=pipeline.monitor_pipeline,
            env=env,
        )
        undelivered, alarms = triggers.undelivered, triggers.alarms
    else:
        serving = ServingStack(
            *named("serving"),
            settings=settings,
            artifact_bucket=artifact_bucket,
            key=key,
            step_code_zip=step_code_zip,
            network=network,
            env=env,
        )
        undelivered = serving.undelivered
    OperationsStack(*named("operations"), settings=settings, key=key, undelivered=[undelivered], alarms=alarms, env=env)
    cdk.Tags.of(app).add("application", settings.name)


def main() -> None:
    app = cdk.App()
    try:
        settings = load(app.node.get_context("environment"))
    except SettingsError as error:
        raise SystemExit(f"error: {error}") from None
    try:
        build(app, settings)
    except LockError as error:
        raise SystemExit(f"error: {error}") from None
    app.synth()


if __name__ == "__main__":
    main()
