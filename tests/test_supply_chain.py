"""What comes from others: every package by its hash, the bill of what travels, and workflows that hold no key."""

import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from review import bill_of_materials, hashes

REPOSITORY = Path(__file__).parents[1]
WORKFLOWS = sorted((REPOSITORY / "examples" / "github-actions").glob("*.yml"))
ROLES = REPOSITORY / "examples" / "github-actions" / "roles.yaml"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Package -> version, of each `name==version` in a requirements file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", text, re.MULTILINE)
    return {canonical(name): version for name, version in found}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- hashes


@pytest.mark.parametrize(("source", "target"), hashes.LOCKED.items())
def test_every_pinned_package_but_torch_has_its_hashes(source: str, target: str) -> None:
    wanted = pins(read(source))
    exempt = {"torch"} if "steps.txt" in source else set()
    assert pins(read(target)) == {name: version for name, version in wanted.items() if name not in exempt}, (
        "run 'make constraints'"
    )
    for package in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", read(target)).strip()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", package), package[:80]


@pytest.mark.parametrize(
    ("requirements", "constraints"),
    [
        ("requirements.txt", "constraints.txt"),
        ("requirements-dev.txt", "constraints.txt"),
        ("requirements-steps.txt", "constraints-steps.txt"),
        ("pipeline_steps/requirements.txt", "constraints-steps.txt"),
    ],
)
def test_what_is_required_is_what_is_pinned(requirements: str, constraints: str) -> None:
    required, pinned = pins(read(requirements)), pins(read(constraints))
    assert required and {name: pinned.get(name) for name in required} == required, "run 'make constraints'"


def test_set_up_installs_nothing_without_a_hash_but_torch_and_ourselves() -> None:
    said = subprocess.run(["make", "-nB", "setup"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    commands = [line for line in said.replace("\\\n", " ").splitlines() if "pip install" in line]
    unhashed = [line.split("pip install ")[1] for line in commands if "--require-hashes" not in line]
    assert len(commands) == 5
    quiet = "--quiet --disable-pip-version-check"
    torch = pins(read("constraints-steps.txt"))["torch"]
    assert unhashed == [f"{quiet} --no-deps --editable .", f"{quiet} -c constraints-steps.txt torch=={torch}"]


# ---------------------------------------------------------------- the bill of materials


def test_the_bill_names_all_that_is_in_the_zip_and_is_always_the_same(tmp_path: Path) -> None:
    path = bill_of_materials.write(output=tmp_path)
    text = path.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    path.unlink()
    assert bill_of_materials.write(output=tmp_path).read_text(encoding="utf-8") == text

    bill: Any = json.loads(text)
    product, packages = bill["metadata"]["component"], bill["components"]
    zip_file = path.with_name(product["bom-ref"])
    assert product["hashes"][0]["content"] == hashlib.sha256(zip_file.read_bytes()).hexdigest()
    assert {canonical(one["name"]): one["version"] for one in packages} == pins(read("pipeline_steps/requirements.txt"))
    for package in packages:
        assert f"--hash=sha256:{package['hashes'][0]['content']}" in read("pipeline_steps/hashes.txt"), package["name"]
        assert package["licenses"], package["name"]
    with zipfile.ZipFile(zip_file) as archive:
        rooms = {name.split("/")[0] for name in archive.namelist()}
    modules = {"datasketch", "detect_secrets", "phonenumbers", "stdnum"}  # of the packages above, as they are imported
    assert rooms == {"__main__.py", "pipeline_steps", *modules}


def test_a_package_that_pip_did_not_tell_of_has_no_bill(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"install": []}), encoding="utf-8")
    with pytest.raises(KeyError, match=r"datasketch|detect|phone|stdnum"):
        bill_of_materials.write(installed=report, output=tmp_path)
    with pytest.raises(FileNotFoundError, match="run 'make setup'"):
        bill_of_materials.write(installed=tmp_path / "none.json", output=tmp_path)


# ---------------------------------------------------------------- workflows


def jobs(workflow: Path) -> dict[str, Any]:
    content: Any = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}, "what a job needs beyond that, it says itself"
    found: dict[str, Any] = content["jobs"]
    return found


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(workflow).values() for step in job["steps"]]


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["checks.yml", "deploy.yml"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_holds_no_key_and_asks_for_a_token_only_to_take_a_role(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    assert not re.search(r"secrets\.|aws-access-key-id|aws-secret-access-key|AKIA[A-Z0-9]{16}|AWS_SECRET", text)
    assert "pull_request_target" not in text  # it would run a stranger's code with our rights
    for name, job in jobs(workflow).items():
        takes_role = [step for step in job["steps"] if "configure-aws-credentials" in step.get("uses", "")]
        assert (job.get("permissions", {}).get("id-token") == "write") is bool(takes_role), name
        for step in takes_role:
            assert re.fullmatch(r"\$\{\{ vars\.[A-Z_]+_ROLE \}\}", step["with"]["role-to-assume"])
            before = job["steps"][: job["steps"].index(step)]
            assert any(one.get("run", "").startswith("make setup") for one in before), (
                "nothing is installed with a role"
            )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_commit_and_every_target_is_there(workflow: Path) -> None:
    uses = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one) for one in uses), uses
    for line in workflow.read_text(encoding="utf-8").splitlines():
        assert "uses:" not in line or re.search(r"# v\d+", line), f"{line}: say which version the commit is"
    # An expression in a command is text that others can write, and the shell would run it.
    assert not [step["run"] for step in steps(workflow) if "${{" in step.get("run", "")]
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    wanted = {target for step in steps(workflow) for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert wanted and wanted <= targets


def test_the_workflows_check_test_show_the_difference_and_deploy() -> None:
    commands = " ".join(step.get("run", "") for workflow in WORKFLOWS for step in steps(workflow))
    for target in ("check", "test", "audit", "sbom", "diff", "deploy"):
        assert f"make {target}" in commands
    assert "cdk diff" in read("Makefile") and "cdk deploy" in read("Makefile")


class _Template(yaml.SafeLoader):
    """CloudFormation's short forms as (tag, value)."""


_Template.add_multi_constructor(
    "!",
    lambda loader, tag, node: (
        tag,
        loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else loader.construct_sequence(node),
    ),
)


def test_the_roles_trust_one_repository_and_may_only_take_the_roles_of_bootstrap() -> None:
    template: Any = yaml.load(ROLES.read_text(encoding="utf-8"), _Template)
    roles = {name: one["Properties"] for name, one in template["Resources"].items() if one["Type"] == "AWS::IAM::Role"}
    trusted = {}
    for name, role in roles.items():
        (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
        assert trust["Action"] == "sts:AssumeRoleWithWebIdentity" and set(trust["Condition"]) == {"StringEquals"}
        conditions = trust["Condition"]["StringEquals"]
        assert conditions["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com"
        trusted[name] = conditions["token.actions.githubusercontent.com:sub"][1]
        for policy in role["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                assert statement["Action"] == "sts:AssumeRole"
                resources = (
                    statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
                )
                assert all(re.search(r":role/cdk-\$\{Qualifier\}-[a-z-]+-role-", arn) for _, arn in resources)
                assert not [arn for _, arn in resources if "*" in arn]
    assert trusted == {
        "DiffRole": "repo:${Repository}:pull_request",
        "DeployRole": "repo:${Repository}:environment:${Environment}",
    }
    assert "deploy-role" not in str(roles["DiffRole"])
    finished = subprocess.run(
        [REPOSITORY / ".venv" / "bin" / "cfn-lint", ROLES], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout
