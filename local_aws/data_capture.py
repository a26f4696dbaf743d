"""Data capture: requests and answers of an endpoint as JSON lines in S3, in SageMaker's layout.

{destination}/{endpoint}/{variant}/yyyy/mm/dd/hh/{mm-ss-millis}-{id}.jsonl, written as the role of the variant's model.
"""

import base64
import json
import logging
import threading
import time
import uuid
from collections import defaultdict
from typing import Any

from local_aws import events, identity
from local_aws.endpoint_router import Invocation
from local_aws.object_store import split
from local_aws.registry import Registry
from local_aws.sagemaker_api import PRINCIPAL

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
Configuration = dict[str, Any]


class DataCapture:
    """Keeps the requests of endpoints whose configuration in `registry` asks for it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._owed: dict[str, float] = defaultdict(float)
        self._fresh: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
        threading.Thread(target=self._run, name="data-capture", daemon=True).start()

    def record(self, invocation: Invocation) -> None:
        """To be told of every request; what was answered is kept in the share that is asked for."""
        if not 200 <= invocation.status < 300:
            return
        configuration = self._registry.data_capture(invocation.config_name)
        if configuration is None or not configuration.get("EnableCapture", False):
            return
        line = json.dumps(record_of(invocation, configuration))
        destination = str(configuration["DestinationS3Uri"])
        key = (destination, invocation.endpoint, invocation.variant, invocation.config_name)
        with self._lock:
            self._owed[invocation.endpoint] += configuration["InitialSamplingPercentage"] / 100
            if self._owed[invocation.endpoint] < 1:
                return
            self._owed[invocation.endpoint] -= 1
            self._fresh[key].append(line)

    def _run(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            with self._lock:
                fresh, self._fresh = self._fresh, defaultdict(list)
            for (destination, endpoint, variant, config), lines in fresh.items():
                try:
                    self._write(destination, endpoint, variant, self._registry.serving_role(config, variant), lines)
                except Exception:  # the bucket is gone, say, or the role may not write; the endpoint serves on
                    log.exception("endpoint %s: %d captured requests were not written", endpoint, len(lines))

    def _write(self, destination: str, endpoint: str, variant: str, role: str, lines: list[str]) -> None:
        bucket, prefix = split(destination)
        now, millis = time.gmtime(), int(time.time() * 1000) % 1000
        folder, moment = time.strftime("%Y/%m/%d/%H", now), time.strftime("%M-%S", now)
        parts = [prefix.strip("/"), endpoint, variant, folder, f"{moment}-{millis:03d}-{uuid.uuid4()}.jsonl"]
        body = "".join(f"{line}\n" for line in lines).encode()
        credentials = identity.assume(role, PRINCIPAL, endpoint)
        events.client("s3", credentials).put_object(Bucket=bucket, Key="/".join(filter(None, parts)), Body=body)


def record_of(invocation: Invocation, configuration: Configuration) -> dict[str, Any]:
    """One line: what came in and what went out, as CaptureOptions ask."""
    modes = {option["CaptureMode"] for option in configuration["CaptureOptions"]}
    sides = {
        "Input": ("endpointInput", invocation.request, invocation.request_headers.get("content-type", "")),
        "Output": ("endpointOutput", invocation.answer, invocation.answer_type),
    }
    captured = {
        name: _side(mode, data, kind, configuration)
        for mode, (name, data, kind) in sides.items()
        if modes & {mode, "InputAndOutput"}
    }
    metadata: dict[str, Any] = {
        "eventId": str(uuid.uuid4()),
        "inferenceTime": invocation.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    headers = invocation.request_headers
    if "x-amzn-sagemaker-inference-id" in headers:
        metadata["inferenceId"] = headers["x-amzn-sagemaker-inference-id"]
    if "x-amzn-sagemaker-custom-attributes" in headers:
        metadata["customAttributes"] = [headers["x-amzn-sagemaker-custom-attributes"]]
    return {"captureData": captured, "eventMetadata": metadata, "eventVersion": "0"}


def _side(mode: str, data: bytes, content_type: str, configuration: Configuration) -> dict[str, str]:
    header = configuration.get("CaptureContentTypeHeader", {})
    plain = content_type.split(";")[0].strip()
    encoding = "BASE64"
    if plain in header.get("JsonContentTypes", []):
        encoding = "JSON"
    elif plain in header.get("CsvContentTypes", []):
        encoding = "CSV"
    try:
        text = base64.b64encode(data).decode() if encoding == "BASE64" else data.decode()
    except UnicodeDecodeError:
        encoding, text = "BASE64", base64.b64encode(data).decode()
    return {"observedContentType": content_type, "mode": mode.upper(), "data": text, "encoding": encoding}
