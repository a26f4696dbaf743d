"""A release to Bedrock: Deploy may have this deployment's models imported, Bedrock may read them, and no endpoint is there."""

from typing import Any

import pytest

from config.settings import Settings
from local_aws import policies, request_actions
from local_aws.policies import Call
from local_aws.request_actions import Place
from pipeline.definition import deploy_definition
from tests.stacks.policies import statements_of

SETTINGS = Settings.model_validate({"name": "mine", "base_model": {"name": "m"}, "release": {"target": "bedrock"}})
PLACE = Place("us-east-1", "123456789012")
ROLE = "arn:aws:iam::123456789012:role/bedrock"
JOB = "arn:aws:bedrock:us-east-1:123456789012:model-import-job/abcdefabcdef"
MODEL = "arn:aws:bedrock:us-east-1:123456789012:imported-model/abcdefabcdef"


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return statements_of(tmp_path_factory.mktemp("stack"), SETTINGS)


def text(resource: Any) -> str:
    """An ARN with the partition put in; another reference as its own text."""
    if isinstance(resource, dict) and "Fn::Join" in resource:
        return "".join(text(part) for part in resource["Fn::Join"][1])
    return "aws" if resource == {"Ref": "AWS::Partition"} else str(resource)


def allowed(statements: list[Any], operation: str, params: dict[str, Any]) -> list[str]:
    """The actions of Bedrock that the operation needs and that no statement allows."""
    resolved = [{**one, "Resource": [text(part) for part in policies.as_list(one["Resource"])]} for one in statements]
    known = policies.statements("deploy", {"Statement": resolved})
    return [
        one.action
        for one in request_actions.wanted("bedrock", operation, params, PLACE)
        if one.action.startswith("bedrock:")
        and not policies.matching(known, Call(ROLE, one.action, one.resource, one.context))
    ]


def test_deploy_may_import_see_and_remove_the_models_of_its_own_deployment(
    statements: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = ([{"key": "application", "value": value}] for value in ("mine", "another"))
    request = {"roleArn": ROLE, "importedModelKmsKeyId": "k"}
    assert allowed(statements, "CreateModelImportJob", {**request, "importedModelTags": ours}) == []
    assert allowed(statements, "CreateModelImportJob", {**request, "importedModelTags": others}) == [
        "bedrock:CreateModelImportJob",
        "bedrock:TagResource",
    ]
    assert allowed(statements, "GetModelImportJob", {"jobIdentifier": JOB}) == []
    for operation in ("ListModelImportJobs", "ListImportedModels"):
        assert allowed(statements, operation, {}) == []
    assert allowed(statements, "GetImportedModel", {"modelIdentifier": MODEL}) == []
    for owner, missing in (("mine", []), ("another", ["bedrock:DeleteImportedModel"])):
        monkeypatch.setattr(
            request_actions, "imported_model_tags", lambda identifier, owner=owner: {"application": owner}
        )
        assert allowed(statements, "DeleteImportedModel", {"modelIdentifier": MODEL}) == missing


def test_nothing_of_an_endpoint_is_granted_and_the_role_goes_to_bedrock_alone(statements: list[Any]) -> None:
    assert not [one for one in statements if "sagemaker:CreateEndpoint" in str(one) or "autoscaling" in str(one)]
    services = [
        one["Condition"]["StringEquals"]["iam:PassedToService"] for one in statements if one["Action"] == "iam:PassRole"
    ]
    assert sorted(services) == ["bedrock.amazonaws.com", "sagemaker.amazonaws.com"]
    (read,) = [one for one in statements if one.get("Sid") == "ReadModel"]
    assert read["Action"] == "s3:GetObject" and "bedrock/*" in str(read["Resource"])


def test_the_step_that_releases_is_the_import() -> None:
    definition = deploy_definition(SETTINGS)
    assert '"to-bedrock"' in definition and "${BedrockRole}" in definition and "${ServingRole}" not in definition
