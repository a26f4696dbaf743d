"""Deploy: an approved model package -> an endpoint that was seen to serve it, or the old endpoint untouched.

out   deployment/    deployment.json, written last

The parts are in release/. Running it again with the same package goes on where it was, or changes nothing.
"""

import time
from pathlib import Path

from botocore.exceptions import ClientError

from pipeline_steps import flags
from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.messages import tell_result
from pipeline_steps.release import package as packages
from pipeline_steps.release.components import Components
from pipeline_steps.release.job import Aws, DeployJob, ReleaseFailed
from pipeline_steps.release.requests import Visitor, check_answers
from pipeline_steps.release.variant import Variant

DEPLOYMENT_SCHEMA_VERSION = 2
REASON_CHARACTERS = 900  # of 1,024 that an approval's description may have


def main(arguments: list[str]) -> None:
    output = Path("/opt/ml/processing/output") / files.DEPLOYMENT_OUTPUT
    run(flags.parse(DeployJob, "deploy", __doc__.split("\n\n")[0], output, arguments))


def run(job: DeployJob) -> None:
    started = time.monotonic()
    aws = Aws(job.model_package_arn)

    # 1. Only what was approved is released, and only while it is what was approved.
    package = packages.read(aws, job.model_package_arn, job.model_package_group)
    if job.copy_to:
        package = packages.copied(package, job.copy_to, job.image_uri or package.container["Image"])

    # 2. Towards the new release: nothing to do, made anew, or traffic moved to it under the eyes of the alarms.
    release = (Variant if job.shape == "variant" else Components)(aws, job, package)
    action = release.begin()
    print(f"{release.target} {action}: {release.name}", flush=True)
    try:
        with Visitor(aws, release.target, package.golden, visits=release.previous is not None) as visitor:
            release.wait(visitor)

        # 3. Seen to answer as the evaluated model did; only then is the endpoint said to serve it.
        agreement = check_answers(aws, release.target, package.golden, job.min_answer_agreement)
        release.confirm()
    except StepError as error:
        if action == "unchanged":
            raise StepError(f"{error}; it served this very release before, so there is nothing to take back") from None
        reject_if_to_blame(aws, package.arn, error)
        try:
            outcome = release.take_back()
        except StepError as second:
            raise StepError(f"{error}; and it could not be taken back: {second}") from None
        raise StepError(f"{error}; {outcome}") from None

    # 4. Autoscaling, and earlier releases beyond those that are kept.
    try:
        release.settle()
    except ClientError as error:
        raise StepError(
            f"{release.target} serves {package.arn} and was seen to answer, but autoscaling or the clean-up failed: {error}; "
            "mend it and start the deploy pipeline again"
        ) from error

    json_files.write(
        job.output / files.DEPLOYMENT_FILE,
        {
            "schema_version": DEPLOYMENT_SCHEMA_VERSION,
            "endpoint_name": job.endpoint_name,
            "inference_component_name": release.target.component,
            "model_package_arn": package.arn,
            "model_digest": package.model_digest,
            "release": release.name,
            "previous_release": release.previous,
            "action": action,
            "requests_meanwhile": {"asked": visitor.asked, "failed": visitor.failed},
            "recorded_requests": {
                "asked": len(package.golden),
                "identical": agreement.identical,
                "mean_agreement": round(agreement.mean, 3),
                "least": job.min_answer_agreement,
            },
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    tell_result(f"{release.target} {action}: serves {package.arn}")


def reject_if_to_blame(aws: Aws, package_arn: str, error: StepError) -> None:
    """Take the approval away from a model that failed: it is no candidate for a release or a rollback any more.

    Who approves it again says that the cause is mended; that starts a new release (docs/decisions/0007).
    """
    if isinstance(error, ReleaseFailed) and error.by_model:
        aws.registry.update_model_package(
            ModelPackageArn=package_arn,
            ModelApprovalStatus="Rejected",
            ApprovalDescription=f"Its release failed: {error}"[:REASON_CHARACTERS],
        )
