"""SageMaker hubs: model documents that lie as files in this server's folder, since nobody can import into AWS's own hub.

<root>/hubs/<hub>/<content>/<version>.json      the HubContentDocument, as AWS answers it
"""

import datetime
from pathlib import Path
from typing import Any

from local_aws.sagemaker_api import (
    Request,
    ResourceNotFound,
    Response,
    Service,
    UnsupportedOperation,
    name_in,
    page,
)

DOCUMENT_SCHEMA_VERSION = "2.3.0"


class Hubs:
    """DescribeHubContent and ListHubContentVersions of models."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe_hub_content(self, request: Request) -> Response:
        versions = self._versions(request)
        version = request.get("HubContentVersion") or max(versions, key=_order)
        if version not in versions:
            raise ResourceNotFound(
                f"HubContent {request['HubContentName']} has no version {version}; there is {', '.join(sorted(versions))}"
            )
        path = versions[version]
        return {
            **self._summary(request, version, path),
            "HubName": name_in(request["HubName"]),
            "HubArn": f"arn:aws:sagemaker:{self._service.settings.region}:aws:hub/{name_in(request['HubName'])}",
            "HubContentDocument": path.read_text(encoding="utf-8"),
        }

    def list_hub_content_versions(self, request: Request) -> Response:
        found = [self._summary(request, version, path) for version, path in self._versions(request).items()]
        summaries, token = page(found, request, name="HubContentName", status="HubContentStatus")
        return {"HubContentSummaries": summaries, **token}

    def _versions(self, request: Request) -> dict[str, Path]:
        """The files of a content by their version. Raises ResourceNotFound if there is none."""
        if request["HubContentType"] != "Model":
            raise UnsupportedOperation(
                f"HubContentType is {request['HubContentType']}; local AWS has hubs of models only"
            )
        hub, name = name_in(request["HubName"]), request["HubContentName"]
        versions = {path.stem: path for path in (self._service.settings.root / "hubs" / hub / name).glob("*.json")}
        if not versions:
            raise ResourceNotFound(f"HubContent {name} of type Model does not exist in hub {hub}")
        return versions

    def _summary(self, request: Request, version: str, path: Path) -> dict[str, Any]:
        hub, name = name_in(request["HubName"]), request["HubContentName"]
        region = self._service.settings.region
        return {
            "HubContentName": name,
            "HubContentArn": f"arn:aws:sagemaker:{region}:aws:hub-content/{hub}/Model/{name}/{version}",
            "HubContentVersion": version,
            "HubContentType": "Model",
            "DocumentSchemaVersion": DOCUMENT_SCHEMA_VERSION,
            "HubContentStatus": "Available",
            "CreationTime": datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC),
        }


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
