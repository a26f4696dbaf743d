"""What serves, and the way to another model and back: all of it through the pipeline `<name>-deploy`."""

import time
from typing import Any

from botocore.exceptions import ClientError
from rich.console import Group
from rich.text import Text

from cli import executions, packages
from cli.aws import Deployment
from cli.console import CommandError
from pipeline_steps.contract import releases


def require_endpoint(deployment: Deployment) -> None:
    """Raise CommandError where a release is an imported model of Bedrock, which has no endpoint to see, ask or move."""
    settings = deployment.settings
    if settings.release.target == "bedrock":
        raise CommandError(
            f"release.target is 'bedrock', so {settings.name} has no endpoint; clients name the ARN of an imported model, and go "
            f"back by naming the one before: aws bedrock list-imported-models --name-contains {settings.name}"
        )


def where(deployment: Deployment, environment: str, follow: bool) -> str:
    """What an approval releases to, in words. Raises CommandError if a release that is to be followed is not in this account."""
    settings = deployment.settings
    if settings.serves:
        return settings.endpoint_name
    places = [f"{environment}/{name}" for name in settings.serving]
    if follow:
        raise CommandError(
            f"the releases are in other accounts or regions; leave out --follow, and see them with 'finetune status -e {places[0]}'"
        )
    return f"{settings.endpoint_name} in {', '.join(places)}"


def serving(deployment: Deployment) -> releases.Serving | None:
    """The release that the endpoint (or the component) was last seen to serve, or None without one."""
    settings = deployment.settings
    if settings.inference_component_name:
        described = _found(
            deployment.sagemaker.describe_inference_component, InferenceComponentName=settings.inference_component_name
        )
        arn = described and described["InferenceComponentArn"]
    else:
        described = _found(deployment.sagemaker.describe_endpoint, EndpointName=settings.endpoint_name)
        arn = described and described["EndpointArn"]
    if not arn:
        return None
    return releases.Serving.of(deployment.sagemaker.list_tags(ResourceArn=arn)["Tags"])


def start(deployment: Deployment, package_arn: str) -> str:
    """Start `<name>-deploy` for a package; returns the execution's ARN."""
    return executions.start(
        deployment, {"ModelPackageArn": package_arn}, pipeline=deployment.settings.deploy_pipeline_name
    )


def wait_for_start(deployment: Deployment, package_arn: str, since: float) -> str:
    """ARN of the execution of `<name>-deploy` that the approval of a package has started after `since` (epoch seconds)."""
    pipeline = deployment.settings.deploy_pipeline_name
    deadline = time.monotonic() + executions.EVENT_SECONDS
    while time.monotonic() < deadline:
        for summary in executions.newest_ones(deployment, pipeline, 5):
            arn = str(summary["PipelineExecutionArn"])
            if summary["StartTime"].timestamp() < since - 1:
                continue
            if executions.parameters(deployment, arn).get("ModelPackageArn") == package_arn:
                return arn
        time.sleep(0.5)
    raise CommandError(
        f"{pipeline} was not started for {package_arn} within {executions.EVENT_SECONDS} s; see the rule ApprovedPackage of the "
        "triggers stack, or start it with `finetune deploy`"
    )


def before(deployment: Deployment, current: releases.Serving) -> str:
    """ARN of the package to go back to: the newest Approved one that is older than what serves.

    A serving place cannot ask the registry: there it is the newest of the earlier releases that were kept.
    """
    if not deployment.settings.trains:
        return _kept_before(deployment, current)
    older = [
        arn
        for arn in packages.arns(deployment, "Approved")
        if releases.version(arn) < releases.version(current.package)
    ]
    if not older:
        raise CommandError(
            f"{current.package} serves, and no older package is Approved: there is nothing to go back to. "
            "Approve an older version first: `finetune approve VERSION`"
        )
    return older[0]


def _kept_before(deployment: Deployment, current: releases.Serving) -> str:
    name = deployment.settings.inference_component_name or deployment.settings.endpoint_name
    pages = deployment.sagemaker.get_paginator("list_models").paginate(NameContains=f"{name[:40]}-v")
    names = [one["ModelName"] for page in pages for one in page["Models"]]
    now = releases.version(current.package)
    older = [
        version for one in names if releases.is_release(one, name) and (version := releases.released_version(one)) < now
    ]
    if not older:
        raise CommandError(
            f"{current.package} serves, and no earlier release is kept here: there is nothing to go back to. "
            "`finetune deploy VERSION` releases any approved version"
        )
    return f"{current.package.rsplit('/', 1)[0]}/{max(older)}"


def endpoint(deployment: Deployment) -> dict[str, Any] | None:
    """What is to be known of the deployment's endpoint, or None without one."""
    settings, sagemaker = deployment.settings, deployment.sagemaker
    described = _found(sagemaker.describe_endpoint, EndpointName=settings.endpoint_name)
    if described is None:
        return None
    current = serving(deployment)
    view: dict[str, Any] = {
        "name": settings.endpoint_name,
        "status": described["EndpointStatus"],
        "configuration": described["EndpointConfigName"],
        "coming": described.get("PendingDeploymentSummary", {}).get("EndpointConfigName"),
        "package": current.package if current else None,
        "package_status": packages.read(deployment, current.package).status if current and settings.trains else None,
        "release": current.release if current else None,
        "instances": sum(one.get("CurrentInstanceCount", 0) for one in described.get("ProductionVariants", [])),
        "changed": described["LastModifiedTime"].isoformat(),
        "failure": described.get("FailureReason"),
        "last_rejected": _last_rejected(deployment) if settings.trains else None,
        "components": [],
        "alarms": {},
    }
    if settings.inference_component_name:
        pages = sagemaker.get_paginator("list_inference_components").paginate(EndpointNameEquals=settings.endpoint_name)
        for one in (one for page in pages for one in page["InferenceComponents"]):
            component = sagemaker.describe_inference_component(InferenceComponentName=one["InferenceComponentName"])
            view["components"].append(
                {
                    "name": one["InferenceComponentName"],
                    "status": component["InferenceComponentStatus"],
                    "copies": component.get("RuntimeConfig", {}).get("CurrentCopyCount"),
                    "failure": component.get("FailureReason"),
                }
            )
    watched = {settings.endpoint_name, settings.name}
    for page in deployment.client("cloudwatch").get_paginator("describe_alarms").paginate():
        for alarm in page["MetricAlarms"]:
            names = {
                one["Value"]
                for one in alarm.get("Dimensions", [])
                if one["Name"] in ("EndpointName", "InferenceComponentName")
            }
            if names & watched:
                view["alarms"][alarm["AlarmName"]] = alarm["StateValue"]
    return view


def render(view: dict[str, Any]) -> Group:
    """A line for each thing to know; whole names, to copy them."""
    status = f" ({view['package_status']})" if view["package_status"] else ""
    package = f"{view['package']}{status}" if view["package"] else "not seen to serve any package yet"
    rows = {
        "endpoint": view["name"],
        "status": f"{view['status']}, to {view['coming']}" if view["coming"] else view["status"],
        "package": package,
        "release": view["release"] or "-",
        "configuration": view["configuration"],
        "instances": str(view["instances"]),
        "changed": view["changed"],
        "failure": view["failure"] or "-",
    }
    if rejected := view["last_rejected"]:
        rows["last rejected"] = f"version {rejected['version']}: {rejected['note']}"
    for component in view["components"]:
        copies = "" if component["copies"] is None else f", {component['copies']} copies"
        rows[f"component {component['name']}"] = f"{component['status']}{copies}"
    for name, state in view["alarms"].items():
        rows[f"alarm {name}"] = state
    width = max(len(label) for label in rows) + 2
    return Group(*(Text.assemble((f"{label:{width}}", "dim"), value) for label, value in rows.items()))


def _last_rejected(deployment: Deployment) -> dict[str, Any] | None:
    found = packages.arns(deployment, "Rejected")[:1]
    if not found:
        return None
    note = deployment.sagemaker.describe_model_package(ModelPackageName=found[0]).get("ApprovalDescription", "")
    return {"package": found[0], "version": releases.version(found[0]), "note": note}


def _found(describe: Any, **name: str) -> Any:
    try:
        return describe(**name)
    except ClientError as error:
        if "could not find" in str(error).lower() or "does not exist" in str(error).lower():
            return None
        raise
