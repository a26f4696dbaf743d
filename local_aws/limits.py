"""What an account may use, as AWS tells it: service quotas of SageMaker, and the images that a registry holds.

Both are this machine's own: a job has at most MOST_HOSTS hosts, a variant at most MOST_INSTANCES instances, whatever their
type; and an image is there if a folder plays its repository, whatever the tag.
"""

import json
from collections.abc import Iterator
from typing import Any

from moto.core.responses import ActionResult
from moto.ecr.responses import ECRResponse
from moto.servicequotas.responses import ServiceQuotasResponse

from local_aws.fleets import MOST_INSTANCES
from local_aws.jobs import MOST_HOSTS
from local_aws.sagemaker_api import service_model
from local_aws.settings import Settings

PAGE = 100  # quotas at most in one answer

# Quota's name after the instance type -> the instance types that SageMaker takes for it, and how many there can be here.
USAGES = {
    "for training job usage": ("TrainingInstanceType", MOST_HOSTS),
    "for spot training job usage": ("TrainingInstanceType", MOST_HOSTS),
    "for training warm pool usage": ("TrainingInstanceType", MOST_HOSTS),
    "for processing job usage": ("ProcessingInstanceType", MOST_HOSTS),
    "for endpoint usage": ("ProductionVariantInstanceType", MOST_INSTANCES),
}


def install(settings: Settings) -> None:
    """Answer ListServiceQuotas for SageMaker, and BatchGetImage for the repositories that a folder plays."""
    quotas = list(_quotas(settings))

    def list_service_quotas(response: ServiceQuotasResponse) -> str:
        request = json.loads(response.body)
        if request.get("ServiceCode") != "sagemaker":
            defaults: str = response.list_aws_default_service_quotas()
            return defaults
        start = int(request.get("NextToken") or 0)
        end = start + min(request.get("MaxResults", PAGE), PAGE)
        return json.dumps({"Quotas": quotas[start:end], **({"NextToken": str(end)} if end < len(quotas) else {})})

    moto_answer = ECRResponse.batch_get_image

    def batch_get_image(response: ECRResponse) -> ActionResult:
        repository = response._get_param("repositoryName")
        if repository not in settings.images:
            return moto_answer(response)
        registry = response._get_param("registryId") or settings.account
        images = [
            {"registryId": registry, "repositoryName": repository, "imageId": image}
            for image in response._get_param("imageIds")
        ]
        return ActionResult({"images": images, "failures": []})

    ServiceQuotasResponse.list_service_quotas = list_service_quotas
    ECRResponse.batch_get_image = batch_get_image


def _quotas(settings: Settings) -> Iterator[dict[str, Any]]:
    number = 0
    for usage, (shape, value) in USAGES.items():
        for instance_type in service_model().shape_for(shape).metadata["enum"]:
            number += 1
            code = f"L-{number:08X}"
            yield {
                "ServiceCode": "sagemaker",
                "ServiceName": "Amazon SageMaker",
                "QuotaArn": f"arn:aws:servicequotas:{settings.region}:{settings.account}:sagemaker/{code}",
                "QuotaCode": code,
                "QuotaName": f"{instance_type} {usage}",
                "Value": float(value),
                "Unit": "None",
                "Adjustable": False,
                "GlobalQuota": False,
            }
