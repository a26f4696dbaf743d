"""python -m review.bill_of_materials: what is in the step code's zip, as CycloneDX 1.6, in a file beside the zip.

It names our code and the packages that travel with it, each with its version, its licence and the SHA-256 of the wheel
that it came from. Of one zip it is always the same bytes: no time, no random number. What the container images bring is
not in the zip, and not in its bill.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from stacks.components.step_code import build_zip

REPOSITORY = Path(__file__).parents[1]
PACKAGES = REPOSITORY / "build" / "step_packages"
INSTALLED = REPOSITORY / "build" / "step_packages.json"  # pip's report of their installation
OUTPUT = REPOSITORY / "build" / "step_code"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "finetune-pipeline")


def write(packages: Path = PACKAGES, installed: Path = INSTALLED, output: Path = OUTPUT) -> Path:
    """Build the zip and write its bill to `output`/<sha256>.cdx.json; returns that path.

    Raises FileNotFoundError if the packages, or pip's report of their installation, are not there.
    """
    if not installed.is_file():
        raise FileNotFoundError(f"{installed} is missing, which tells what was installed; run 'make setup'")
    zip_file = build_zip(REPOSITORY, packages, output)
    path = zip_file.with_suffix(".cdx.json")
    path.write_text(bill_of(zip_file, packages, installed), encoding="utf-8")
    return path


def bill_of(zip_file: Path, packages: Path, installed: Path) -> str:
    """The bill of `zip_file`, made from `packages`, of which `installed` is pip's report. Raises KeyError for one not in it."""
    digest = hashlib.sha256(zip_file.read_bytes()).hexdigest()
    report = json.loads(installed.read_text(encoding="utf-8"))["install"]
    wheels = {one["metadata"]["name"]: one["download_info"]["archive_info"]["hashes"]["sha256"] for one in report}
    product = Component(
        name="pipeline_steps",
        version=digest,
        type=ComponentType.APPLICATION,
        bom_ref=zip_file.name,
        hashes=[sha256(digest)],
    )
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, digest))
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.metadata.component = product
    parts = [component(one, wheels[one.name]) for one in distributions(path=[str(packages)])]
    bom.components.update(parts)
    bom.register_dependency(product, parts)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def component(package: Distribution, wheel: str) -> Component:
    """An installed package; `wheel` is the SHA-256 of the file that it came from."""
    purl = PackageURL("pypi", name=package.name.lower().replace("_", "-"), version=package.version)
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        hashes=[sha256(wheel)],
        licenses=licences(package),
    )


def licences(package: Distribution) -> Iterator[License]:
    """As the package tells them: an SPDX expression, else its classifiers' words, else its field of old."""
    if expression := package.metadata["License-Expression"]:
        yield LicenseExpression(expression)
        return
    classifiers = [one for one in package.metadata.get_all("Classifier", []) if one.startswith("License ::")]
    for text in classifiers or filter(None, [package.metadata["License"]]):
        yield DisjunctiveLicense(name=text.rsplit(":: ", 1)[-1])


def sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


if __name__ == "__main__":
    print(write())
