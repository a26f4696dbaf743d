"""The synthesized app: deterministic, offline, without credentials, and with what a review looks for."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from stacks.components.step_code import build_zip

REPOSITORY = Path(__file__).parent.parent.parent


def synth(output: Path, environment: str, *, network: bool = True) -> subprocess.CompletedProcess[str]:
    """`python app.py` as the CDK CLI runs it, without AWS credentials; optionally in a namespace without a network."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    context = json.loads((REPOSITORY / "cdk.json").read_text(encoding="utf-8"))["context"]
    variables |= {
        "PATH": f"{REPOSITORY / '.venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(output.parent),
        "CDK_OUTDIR": str(output),
        "CDK_CONTEXT_JSON": json.dumps(context | {"environment": environment}),
    }
    isolation = [] if network else ["unshare", "--map-root-user", "--net"]
    command = [*isolation, sys.executable, "app.py"]
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("synth") / "prod"
    finished = synth(output, "prod")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout + finished.stderr == "", "a synth says nothing unless something is wrong"
    return output


@pytest.fixture(scope="module")
def resources(assembly: Path) -> dict[str, Any]:
    """Every resource of the app, by stack and logical id."""
    return {
        f"{path.name.removesuffix('.template.json')}/{id_}": resource
        for path in sorted(assembly.glob("*.template.json"))
        for id_, resource in json.loads(path.read_text(encoding="utf-8"))["Resources"].items()
    }


def of_type(resources: dict[str, Any], type_: str) -> dict[str, Any]:
    return {id_: resource["Properties"] for id_, resource in resources.items() if resource["Type"] == type_}


def test_synth_twice_gives_the_same_bytes_with_the_network_denied(assembly: Path, tmp_path: Path) -> None:
    finished = synth(tmp_path / "again", "prod", network=False)
    assert finished.returncode == 0, finished.stderr
    first = {path.relative_to(assembly): path.read_bytes() for path in assembly.rglob("*") if path.is_file()}
    again = tmp_path / "again"
    second = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert first.keys() == second.keys() and len(first) > 10
    assert [str(path) for path in first if first[path] != second[path]] == []


def test_a_wrong_configuration_key_fails_the_synth_and_names_the_nearest(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: demo\nbase_model: {name: tiny}\ntrainning: {}\n", encoding="utf-8")
    finished = synth(tmp_path / "out", str(wrong))
    assert finished.returncode == 1
    assert "trainning: unknown key (value {}); did you mean 'training'?" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_app_has_the_stacks_of_the_design(resources: dict[str, Any]) -> None:
    stacks = {id_.split("/")[0] for id_ in resources}
    assert stacks == {f"mistral-7b-{stack}" for stack in ("storage", "pipeline", "triggers", "operations")}


def test_there_is_no_lambda_and_no_custom_resource(resources: dict[str, Any]) -> None:
    types = {resource["Type"] for resource in resources.values()}
    assert not {type_ for type_ in types if "Lambda" in type_ or type_.startswith("Custom::")}


def test_buckets_are_private_encrypted_versioned_and_kept_in_production(resources: dict[str, Any]) -> None:
    buckets = {id_: r for id_, r in resources.items() if r["Type"] == "AWS::S3::Bucket"}
    assert len(buckets) == 3  # raw, artifacts, access logs
    for bucket in buckets.values():
        assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
        properties = bucket["Properties"]
        assert all(properties["PublicAccessBlockConfiguration"].values())
        assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
        assert properties["BucketEncryption"]


def test_data_has_a_key_of_the_customers_that_rotates(resources: dict[str, Any]) -> None:
    (key,) = [one for one in resources.values() if one["Type"] == "AWS::KMS::Key"]
    assert key["Properties"]["EnableKeyRotation"] is True and key["DeletionPolicy"] == "Retain"
    for name, bucket in of_type(resources, "AWS::S3::Bucket").items():
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        by_key = "KMSMasterKeyID" in rule["ServerSideEncryptionByDefault"]
        assert by_key is ("AccessLogs" not in name), name  # S3 delivers its logs to no bucket with a key
        assert ("LoggingConfiguration" in bucket) is by_key, name
    for one in (*of_type(resources, "AWS::SNS::Topic").values(), *of_type(resources, "AWS::SQS::Queue").values()):
        assert one["KmsMasterKeyId"]


def test_every_statement_of_a_role_has_a_name(resources: dict[str, Any]) -> None:
    for id_, policy in of_type(resources, "AWS::IAM::Policy").items():
        names = [statement.get("Sid") for statement in policy["PolicyDocument"]["Statement"]]
        assert all(names) and len(set(names)) == len(names), (id_, names)


def test_everything_that_can_be_tagged_says_whose_it_is(resources: dict[str, Any]) -> None:
    tagged = ("Bucket", "Role", "Key", "Topic", "Pipeline", "ModelPackageGroup", "Rule", "Alarm")
    for id_, resource in resources.items():
        if resource["Type"].rsplit("::", 1)[-1] in tagged and "Tags" in resource["Properties"]:
            assert {"Key": "application", "Value": "mistral-7b"} in resource["Properties"]["Tags"], id_
    for type_ in ("AWS::S3::Bucket", "AWS::IAM::Role", "AWS::KMS::Key", "AWS::SageMaker::Pipeline"):
        assert all("Tags" in properties for properties in of_type(resources, type_).values()), type_


def test_no_role_has_a_managed_or_an_all_powerful_policy(resources: dict[str, Any]) -> None:
    for id_, role in of_type(resources, "AWS::IAM::Role").items():
        assert "ManagedPolicyArns" not in role, id_
    for id_, policy in of_type(resources, "AWS::IAM::Policy").items():
        for statement in policy["PolicyDocument"]["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert "*" not in actions and not [a for a in actions if a.endswith(":*")], id_
            if statement["Resource"] == "*":  # actions that know no resources, and no others
                assert set(actions) <= {
                    "ecr:GetAuthorizationToken", "cloudwatch:PutMetricData",
                    "sagemaker:ListEndpointConfigs",
                }, id_  # fmt: skip
            if "iam:PassRole" in actions:
                assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


def test_every_role_is_assumed_on_behalf_of_this_account_only(resources: dict[str, Any]) -> None:
    roles = of_type(resources, "AWS::IAM::Role")
    assert len(roles) == 11
    for id_, role in roles.items():
        (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}, id_


def test_new_data_of_each_mode_starts_the_pipeline_with_its_manifest(resources: dict[str, Any]) -> None:
    rules = [rule for id_, rule in of_type(resources, "AWS::Events::Rule").items() if id_.endswith("Data")]
    assert len(rules) == 3
    for mode, rule in zip(("instruction", "domain", "chat"), rules, strict=True):
        assert rule["EventPattern"]["detail"]["object"]["key"] == [{"wildcard": f"{mode}/*.manifest"}]
        (target,) = rule["Targets"]
        assert target["SageMakerPipelineParameters"]["PipelineParameterList"] == [
            {"Name": "DatasetManifest", "Value": "$.detail.object.key"},
            {"Name": "TuningMode", "Value": mode},
            {"Name": "StartedBy", "Value": "new data"},
        ]


def test_an_approval_starts_the_deploy_pipeline_with_its_package_and_nothing_else_does(
    resources: dict[str, Any],
) -> None:
    (rule,) = [rule for id_, rule in of_type(resources, "AWS::Events::Rule").items() if "ApprovedPackage" in id_]
    assert rule["EventPattern"]["detail"] == {
        "ModelPackageGroupName": ["mistral-7b"],
        "ModelApprovalStatus": ["Approved"],
    }
    (target,) = rule["Targets"]
    assert json.dumps(target["Arn"]).endswith(':pipeline/mistral-7b-deploy"]]}')
    assert target["SageMakerPipelineParameters"]["PipelineParameterList"] == [
        {"Name": "ModelPackageArn", "Value": "$.detail.ModelPackageArn"}
    ]


def test_people_hear_of_an_endpoint_that_fails_or_is_slow(resources: dict[str, Any]) -> None:
    alarms = [
        one for one in of_type(resources, "AWS::CloudWatch::Alarm").values() if one.get("Namespace") == "AWS/SageMaker"
    ]
    assert sorted(one["MetricName"] for one in alarms) == ["Invocation5XXErrors", "ModelLatency"]
    for alarm in alarms:
        assert {"Name": "EndpointName", "Value": "mistral-7b"} in alarm["Dimensions"]
        assert alarm["TreatMissingData"] == "notBreaching"


def test_every_alarm_is_told_in_words_and_none_twice(resources: dict[str, Any]) -> None:
    alarms = {id_: resource for id_, resource in resources.items() if resource["Type"] == "AWS::CloudWatch::Alarm"}
    assert len(alarms) == 6
    assert not [id_ for id_, alarm in alarms.items() if "AlarmActions" in alarm["Properties"]]
    (rule,) = [one for id_, one in of_type(resources, "AWS::Events::Rule").items() if "TellAlarm" in id_]
    names = json.dumps(rule["EventPattern"]["detail"]["alarmName"])
    assert [id_ for id_ in alarms if id_.split("/")[1] not in names] == []
    assert all(alarm["Properties"]["AlarmDescription"] for alarm in alarms.values())


def test_a_start_that_fails_is_kept_for_every_rule_and_schedule(resources: dict[str, Any]) -> None:
    targets = [
        (id_, target) for id_, rule in of_type(resources, "AWS::Events::Rule").items() for target in rule["Targets"]
    ] + [(id_, one["Target"]) for id_, one in of_type(resources, "AWS::Scheduler::Schedule").items()]
    assert len(targets) == 3 + 1 + 1 + 6 + 2  # data, approval, drift, messages, schedules
    assert [id_ for id_, target in targets if "DeadLetterConfig" not in target] == []
    queues = of_type(resources, "AWS::SQS::Queue")
    assert [queue["MessageRetentionPeriod"] for queue in queues.values()] == [14 * 86400] * 2


def test_who_starts_a_run_travels_with_every_trigger(resources: dict[str, Any]) -> None:
    targets = [target for rule in of_type(resources, "AWS::Events::Rule").values() for target in rule["Targets"]] + [
        one["Target"] for one in of_type(resources, "AWS::Scheduler::Schedule").values()
    ]
    given = [
        {one["Name"]: one["Value"] for one in target["SageMakerPipelineParameters"]["PipelineParameterList"]}
        for target in targets
        if "mistral-7b-finetune" in json.dumps(target["Arn"])
    ]
    assert sorted(one["StartedBy"] for one in given) == ["drift", *["new data"] * 3, "schedule"]
    assert all({"DatasetManifest", "TuningMode"} <= one.keys() for one in given)


def test_the_dashboard_shows_runs_training_evaluations_endpoint_traffic_and_cost(resources: dict[str, Any]) -> None:
    (dashboard,) = of_type(resources, "AWS::CloudWatch::Dashboard").values()
    text = json.dumps(dashboard["DashboardBody"])
    for shown in (
        "ExecutionFailed", "train:loss", "train:tokens_per_second", "-Evaluate-", "ModelLatency", "GPUUtilization",
        "AnswerWords", "UnendedShare", "PromptSimilarity", "EstimatedCharges",
    ):  # fmt: skip
        assert shown in text, shown


def test_the_budget_is_of_what_carries_this_deployments_tag(resources: dict[str, Any]) -> None:
    (budget,) = of_type(resources, "AWS::Budgets::Budget").values()
    assert budget["Budget"]["CostFilters"] == {"TagKeyValue": ["user:application$mistral-7b"]}
    assert [one["Notification"]["Threshold"] for one in budget["NotificationsWithSubscribers"]] == [80, 100]


def test_a_release_may_reject_a_package_and_never_approve_one(resources: dict[str, Any]) -> None:
    statements = [
        statement
        for policy in of_type(resources, "AWS::IAM::Policy").values()
        for statement in policy["PolicyDocument"]["Statement"]
        if "sagemaker:UpdateModelPackage" in json.dumps(statement["Action"])
    ]
    assert [statement["Condition"] for statement in statements] == [
        {"StringEquals": {"sagemaker:ModelApprovalStatus": "Rejected"}}
    ]


def test_the_definition_in_the_template_names_only_resources_that_are_put_in(resources: dict[str, Any]) -> None:
    pipelines = of_type(resources, "AWS::SageMaker::Pipeline")
    assert len(pipelines) == 4
    for pipeline in pipelines.values():
        body, put_in = pipeline["PipelineDefinition"]["PipelineDefinitionBody"]["Fn::Sub"]
        for name in put_in:
            body = body.replace(f"${{{name}}}", "")
        assert "${" not in body


def test_the_step_code_is_one_zip_that_python_runs(assembly: Path) -> None:
    (asset,) = assembly.glob("asset.*.zip")
    with zipfile.ZipFile(asset) as archive:
        names = archive.namelist()
    assert "__main__.py" in names and "pipeline_steps/prepare_data.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".pyi"))]
    finished = subprocess.run([sys.executable, str(asset), "--help"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for step in ("prepare-data", "fine-tune", "evaluate", "compare", "monitor", "deploy"):
        assert step in finished.stdout


def test_the_packages_that_the_image_lacks_are_imported_from_the_zip(assembly: Path) -> None:
    (asset,) = assembly.glob("asset.*.zip")
    code = "import datasketch, phonenumbers, stdnum, detect_secrets as d; print(datasketch.__file__, phonenumbers.__file__)"
    finished = subprocess.run(
        [REPOSITORY / ".venv-steps" / "bin" / "python", "-c", code],
        env={"PYTHONPATH": str(asset)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count(str(asset)) == 2


def test_without_the_packages_synth_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no packages for the steps; run 'make setup'"):
        build_zip(REPOSITORY, tmp_path, tmp_path / "out")


def test_a_compiled_package_is_refused_since_it_cannot_run_from_a_zip(tmp_path: Path) -> None:
    (tmp_path / "packages" / "fast").mkdir(parents=True)
    (tmp_path / "packages" / "fast" / "core.so").touch()
    with pytest.raises(ValueError, match=r"compiled modules, which cannot run from a zip: fast/core\.so"):
        build_zip(REPOSITORY, tmp_path / "packages", tmp_path / "out")
