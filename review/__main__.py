"""python -m review: cdk-nag, cfn-lint and checkov over the templates of every configuration, our own rules over its jobs,
and its roles against AWS's Service Authorization Reference.

Every finding must be acknowledged with its reason in acknowledged.yaml; what is found and not acknowledged, or acknowledged
and not found, ends it with 1. So does a template that is not as its snapshot (snapshots.py); `python -m review accept`
writes the snapshots anew.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import aws_cdk as cdk
import yaml
from cdk_nag import AwsSolutionsChecks, NIST80053R5Checks

import app as product
from config.settings import deployments, load
from review import pipeline_rules, service_authorization, snapshots

REPOSITORY = Path(__file__).parents[1]
OUTPUT = REPOSITORY / "build" / "review"
CHECKOV = REPOSITORY / ".venv-review" / "bin" / "checkov"


@dataclass(frozen=True)
class Finding:
    """What a tool found: `rule` on `resource`, with the tool's own words."""

    rule: str
    resource: str
    text: str


@dataclass(frozen=True)
class Acknowledgement:
    """A finding that stays. `rule` and `resource` are regular expressions for all of a rule's name and of a resource's."""

    rule: str
    resource: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        return bool(re.fullmatch(self.rule, finding.rule) and re.fullmatch(self.resource, finding.resource))


def main(accept: bool) -> int:
    acknowledged = [
        Acknowledgement(**one) for one in yaml.safe_load(Path(__file__).with_name("acknowledged.yaml").read_text())
    ]
    # CDK tells every finding too, acknowledged or not: a process of its own keeps that to itself.
    command = [sys.executable, "-m", "review", "synth"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"error: the synth failed:\n{(finished.stdout + finished.stderr)[-4000:]}")
    findings = [one for environment in deployments() for one in nag_findings(environment)]
    templates = sorted(OUTPUT.glob("*/*.template.json"))
    with ThreadPoolExecutor() as pool:
        for found in pool.map(lambda tool: tool(templates), (cfn_lint, checkov)):
            findings += found
    for environment in deployments():
        findings += [
            Finding(rule, f"{job.pipeline}/{job.step}", told)
            for job in pipeline_rules.jobs(load(environment))
            for rule, told in pipeline_rules.problems(job)
        ]
        templates_of = [path for path in templates if path.parent == output_of(environment)]
        known = service_authorization.reference(CHECKOV.parents[1])
        findings += [Finding(*one) for one in service_authorization.problems(templates_of, known)]
    changed = compare(accept)
    open_ = [one for one in findings if not any(each.covers(one) for each in acknowledged)]
    idle = [one for one in acknowledged if not any(one.covers(each) for each in findings)]
    for one in open_:
        print(f"{one.rule} on {one.resource}\n  {one.text}")
    for each in idle:
        print(f"acknowledged and not found, remove it: {each.rule} on {each.resource}")
    print(
        f"{len(templates)} templates of {', '.join(deployments())}: {len(findings)} findings of cdk-nag, cfn-lint, checkov and "
        f"our own rules, {len(findings) - len(open_)} acknowledged, {len(open_)} not"
    )
    return 1 if open_ or idle or changed else 0


def output_of(environment: str) -> Path:
    return OUTPUT / environment.replace("/", "-")


def compare(accept: bool) -> bool:
    """Whether a configuration is not as its snapshot, which is told; with `accept` the snapshots are written instead."""
    changed = False
    for environment in snapshots.SHOWN:
        templates = sorted(output_of(environment).glob("*.template.json"))
        if accept:
            snapshots.write(environment, templates)
        elif lines := snapshots.differences(environment, templates):
            changed = True
            print("\n".join(lines))
            print(f"{environment} is not as its snapshot; if that is wanted: python -m review accept, and commit it")
    return changed


def nag(environment: str) -> None:
    """Synthesize a configuration with cdk-nag's rules of AWS Solutions and NIST 800-53 (revision 5) over it."""
    context = json.loads((REPOSITORY / "cdk.json").read_text(encoding="utf-8"))["context"]
    app = cdk.App(outdir=str(output_of(environment)), context=context)
    product.build(app, load(environment))
    for pack in (AwsSolutionsChecks, NIST80053R5Checks):
        cdk.Validations.of(app).add_plugins(pack(app))
    try:
        app.synth()
    except RuntimeError as error:  # findings are an error to CDK; the report has them
        if "Validation failed" not in str(error):
            raise


def nag_findings(environment: str) -> Iterator[Finding]:
    report = json.loads((output_of(environment) / "validation-report.json").read_text(encoding="utf-8"))
    for plugin in report["pluginReports"]:
        for violation in plugin["violations"]:
            for construct in violation["violatingConstructs"]:
                yield Finding(violation["ruleName"], construct["constructPath"], violation["description"])


def cfn_lint(templates: list[Path]) -> list[Finding]:
    command = [Path(sys.executable).with_name("cfn-lint"), "--format", "json", *templates]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout or "[]")
    return [
        Finding(
            one["Rule"]["Id"], str((one["Location"].get("Path") or ["", ""])[1]), f"{one['Filename']}: {one['Message']}"
        )
        for one in found
    ]


def checkov(templates: list[Path]) -> list[Finding]:
    command = [
        CHECKOV,
        "--directory",
        OUTPUT,
        "--framework",
        "cloudformation",
        "--skip-download",
        "--quiet",
        "--output",
        "json",
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(finished.stdout)
    if report["summary"]["parsing_errors"]:
        raise SystemExit(f"error: checkov could not read {report['results']['parsing_errors']}")
    return [Finding(one["check_id"], one["resource"], one["check_name"]) for one in report["results"]["failed_checks"]]


if __name__ == "__main__":
    if sys.argv[1:] == ["synth"]:
        for name in deployments():
            nag(name)
    else:
        sys.exit(main(accept=sys.argv[1:] == ["accept"]))
