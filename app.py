"""Configuration -> stacks. The only place that reads the outside: the environment's name and the checkout's path.

npx cdk deploy --all -c environment=prod
"""

from pathlib import Path

import aws_cdk as cdk

from config.jumpstart_lock import LockError
from config.settings import Settings, SettingsError, load
from stacks.components.step_code import build_zip
from stacks.network import Network, NetworkStack
from stacks.operations import OperationsStack
from stacks.pipeline import PipelineStack
from stacks.storage import StorageStack
from stacks.triggers import TriggersStack

REPOSITORY = Path(__file__).parent


def build(app: cdk.App, settings: Settings) -> None:
    """Add the stacks of one deployment to `app`."""
    # Without an account the stacks stay environment-agnostic, so that synth needs no credentials.
    env = cdk.Environment(account=settings.account, region=settings.region)
    try:
        step_code_zip = build_zip(
            REPOSITORY, REPOSITORY / "build" / "step_packages", REPOSITORY / "build" / "step_code"
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None

    storage = StorageStack(app, f"{settings.name}-storage", settings=settings, env=env)
    network = None
    if settings.network is not None:
        network = Network.of_the_user(settings.network)
        if settings.network.is_created:
            network = NetworkStack(app, f"{settings.name}-network", settings=settings, key=storage.key, env=env).network
    pipeline = PipelineStack(
        app,
        f"{settings.name}-pipeline",
        settings=settings,
        raw_bucket=storage.raw_bucket,
        artifact_bucket=storage.artifact_bucket,
        key=storage.key,
        step_code_zip=step_code_zip,
        network=network,
        env=env,
    )
    triggers = TriggersStack(
        app,
        f"{settings.name}-triggers",
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
        f"{settings.name}-operations",
        settings=settings,
        key=storage.key,
        undelivered=[triggers.undelivered],
        alarms=triggers.alarms,
        env=env,
    )
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
