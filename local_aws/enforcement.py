"""Every request that a role signs is authorized before moto, or one of our rooms, answers it."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import unescape

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, BaseResponse
from moto.s3.exceptions import S3ClientError
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response

from local_aws import authorization, request_actions
from local_aws.authorization import AccessDenied, Caller
from local_aws.networks import NoWay
from local_aws.request_actions import Place, UnknownRequest, Wanted, s3_list, s3_object
from local_aws.sagemaker_api import json_body
from local_aws.settings import Settings

# Services that say AccessDenied; the others say AccessDeniedException.
PLAIN_CODE = ("autoscaling", "cloudformation", "cloudwatch", "iam", "sns", "sqs", "sts")

_settings: Settings


class S3AccessDenied(S3ClientError):  # type: ignore[misc]
    """S3's own form of the error."""

    code = 403

    def __init__(self, message: str, code: str = "AccessDenied") -> None:
        super().__init__(code, message)


def install(settings: Settings) -> None:
    """Look at every request from now on."""
    global _settings
    _settings = settings
    BaseResponse.call_action = _authorized(BaseResponse.call_action)
    S3Response._authenticate_and_authorize_s3_action = _authorize_s3


def authorize_invocation(headers: dict[str, str], endpoint: str) -> None:
    """Raise AccessDenied or NoWay unless the signer of a runtime request may invoke the endpoint (and component)."""
    caller = authorization.caller_in(headers.get("authorization", ""))
    component = headers.get("x-amzn-sagemaker-inference-component", "")
    _require(caller, "sagemaker-runtime", request_actions.invoke_endpoint(endpoint, component, _place()))


def _require(caller: Caller, service: str, wanted: Iterable[Wanted]) -> None:
    """Raise NoWay unless the request, which is the first of what it needs, reaches its service; AccessDenied for each."""
    for number, one in enumerate(wanted):
        if number == 0:
            authorization.require_way(caller, service, one.action, one.resource, one.context)
        authorization.authorize(caller, one.action, one.resource, one.context)


def _place() -> Place:
    return Place(_settings.region, _settings.account)


def _authorized(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call_action(self: Any) -> Any:
        caller = authorization.caller_in(self.headers.get("Authorization", ""))
        if caller != authorization.ADMINISTRATOR:
            service, operation = str(self.boto3_service_name), str(self._get_action())
            try:
                wanted = request_actions.wanted(service, operation, _params(self, service), _place())
                _require(caller, service, wanted)
            except (AccessDenied, NoWay, UnknownRequest) as error:
                return _refusal(self, service, error)
        return original(self)

    return call_action


def _params(response: Any, service: str) -> dict[str, Any]:
    """The request's parameters; moto reads those of some services only."""
    if response.automated_parameter_parsing and service != "sagemaker":
        return dict(response.params)
    if response.body and response.body.lstrip().startswith("{"):
        return json_body(response.raw_body)
    return {name: values[0] for name, values in response.querystring.items()}


def _refusal(response: Any, service: str, error: Exception) -> Any:
    code = "AccessDenied" if service in PLAIN_CODE else "AccessDeniedException"
    if isinstance(error, NoWay):
        code = error.code
    # moto finds the service that an error belongs to by the module of its class.
    kind = type(code, (ServiceException,), {"__module__": type(response).__module__, "code": code})
    refusal = kind(str(error))
    status, headers, body = response.serialized(ActionResult(refusal))
    return 403 if status == 400 else status, headers, body


def _authorize_s3(self: Any, bucket_name: str | None = None, key_name: str | None = None) -> None:
    caller = authorization.caller_in(self.headers.get("Authorization", ""))
    if caller == authorization.ADMINISTRATOR:
        return
    try:
        _require(caller, "s3", _s3_wanted(self, caller, bucket_name or "", key_name))
    except (AccessDenied, NoWay) as error:
        raise S3AccessDenied(str(error), error.code) from None


def _s3_wanted(request: Any, caller: Caller, bucket: str, key: str | None) -> Iterator[Wanted]:
    action = str(request.data["Action"])
    if action in ("ListBucket", "HeadBucket"):
        prefix = request.querystring.get("prefix", [""])
        yield s3_list(bucket, prefix[0] if prefix else "")
        return
    if key is None and action == "DeleteObject":  # many objects, named in the body
        for name in re.findall(r"<Key>(.*?)</Key>", request.body.decode() if request.body else "", re.DOTALL):
            yield s3_object(action, bucket, unescape(name))
        return
    if key is None:
        yield Wanted(f"s3:{action}", f"arn:aws:s3:::{bucket}" if bucket else "*")
        return
    source = request.headers.get("x-amz-copy-source")
    if action == "PutObject" and source:
        source_bucket, _, source_key = unquote(source).lstrip("/").split("?")[0].partition("/")
        yield s3_object("GetObject", source_bucket, source_key)
        yield from key_wanted(source_bucket, source_key, _settings)
    yield s3_object(action, bucket, key)
    if action in ("GetObject", "GetObjectVersion", "PutObject"):
        yield from key_wanted(bucket, key, _settings, writes=action == "PutObject")
    if action == "GetObject" and not _exists(bucket, key):
        # Who may not list a bucket does not learn that an object is missing.
        yield Wanted("s3:ListBucket", f"arn:aws:s3:::{bucket}")


def _exists(bucket: str, key: str) -> bool:
    found = s3_backends[_settings.account]["aws"].buckets.get(bucket)
    return found is not None and found.keys.get(key) is not None


def key_wanted(bucket: str, key: str, settings: Settings, *, writes: bool = False) -> Iterator[Wanted]:
    """What an object that is encrypted with a KMS key needs beside its own action; nothing for any other object."""
    found = s3_backends[settings.account]["aws"].buckets.get(bucket)
    if found is None:
        return
    if writes:
        default = (found.encryption or {}).get("Rule", {}).get("ApplyServerSideEncryptionByDefault", {})
        kms_key = default.get("KMSMasterKeyID") if default.get("SSEAlgorithm") == "aws:kms" else None
        action = "kms:GenerateDataKey"
    else:
        kms_key, action = getattr(found.keys.get(key), "kms_key_id", None), "kms:Decrypt"
    if kms_key:
        yield Wanted(action, str(kms_key), {"kms:ViaService": f"s3.{settings.region}.amazonaws.com"})
