"""Configuration -> stacks. The only place that reads the outside: the environment's name and the checkout's path.

npx cdk deploy --all -c environment=prod
npx cdk deploy --all -c environment=prod/eu     # its serving place `eu`
"""

from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_kms as kms

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
    try:
        step_code_zip = build_zip(
            REPOSITORY, REPOSITORY / "build" / "step_packages", REPOSITORY / "build" / "step_code"
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    (_train if settings.trains else _serve)(app, settings, step_code_zip)
    cdk.Tags.of(app).add("application", settings.name)


def _train(app: cdk.App, settings: Settings, step_code_zip: Path) -> None:
    env = _environment(settings)
    storage = StorageStack(app, settings.stack_name("storage"), settings=settings, env=env)
    pipeline = PipelineStack(
        app,
        settings.stack_name("pipeline"),
        settings=settings,
        raw_bucket=storage.raw_bucket,
        artifact_bucket=storage.artifact_bucket,
        key=storage.key,
        step_code_zip=step_code_zip,
        network=_network(app, settings, storage.key),
        env=env,
    )
    triggers = TriggersStack(
        app,
        settings.stack_name("triggers"),
        settings=settings,
        raw_bucket=storage.raw_bucket,
        key=storage.key,
        finetune_pipeline=pipeline.finetune_pipeline,
        deploy_pipeline=pipeline.deploy_pipeline,
        monitor_pipeline=pipeline.monitor_pipeline,
        env=env,
    )
    OperationsStack(
        app,
        settings.stack_name("operations"),
        settings=settings,
        key=storage.key,
        undelivered=[triggers.undelivered],
        alarms=triggers.alarms,
        env=env,
    )


def _serve(app: cdk.App, settings: Settings, step_code_zip: Path) -> None:
    env = _environment(settings)
    storage = StorageStack(app, settings.stack_name("storage"), settings=settings, env=env)
    serving = ServingStack(
        app,
        settings.stack_name("serving"),
        settings=settings,
        artifact_bucket=storage.artifact_bucket,
        key=storage.key,
        step_code_zip=step_code_zip,
        network=_network(app, settings, storage.key),
        env=env,
    )
    OperationsStack(
        app,
        settings.stack_name("operations"),
        settings=settings,
        key=storage.key,
        undelivered=[serving.undelivered],
        alarms=[],
        env=env,
    )


def _environment(settings: Settings) -> cdk.Environment:
    """Without an account the stacks stay environment-agnostic, so that synth needs no credentials."""
    return cdk.Environment(account=settings.account, region=settings.region)


def _network(app: cdk.App, settings: Settings, key: kms.IKey) -> Network | None:
    if settings.network is None:
        return None
    if not settings.network.is_created:
        return Network.of_the_user(settings.network)
    id_ = settings.stack_name("network")
    return NetworkStack(app, id_, settings=settings, key=key, env=_environment(settings)).network


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
