"""Base models from every source, and what goes wrong on the way: cut off, changed, gated, pickled, leading elsewhere."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import base_models, model_files, model_sources
from cli.aws import LOCAL_CREDENTIALS, REPOSITORY, Deployment
from cli.console import CommandError
from tests.cli import hub_server
from tests.cli.hub_server import COMMIT, Hub, safetensors

SHARDS = {
    "model-00001-of-00002.safetensors": safetensors(b"first" * 1000),
    "model-00002-of-00002.safetensors": safetensors(b"second" * 1000),
}
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
SHARDED = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": INDEX.encode(), **SHARDS}


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_sources, "SCRATCH", tmp_path / "imports")
    monkeypatch.setattr(base_models, "KEPT", tmp_path / "kept")
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository as they are: shards, beside them the same weights once more, and pickled."""
    others = {"consolidated.safetensors": safetensors(b"copy"), "original/weights.pth": b"p", "pytorch_model.bin": b"p"}
    with hub_server.running(
        Hub({**SHARDED, **others, "README.md": b"---\nlicense: mit\n---\n"}, large=set(SHARDS))
    ) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def import_model(
    deployment: Deployment, source: str, name: str, **options: object
) -> tuple[dict[str, object], list[str]]:
    """The marker in the bucket, and what was said."""
    said: list[str] = []
    base_models.import_model(deployment, source, name, said.append, **options)  # type: ignore[arg-type]
    key = f"base-models/{name}/base_model.json"
    body = deployment.s3.get_object(Bucket=deployment.artifact_bucket, Key=key)["Body"].read()
    return json.loads(body), said


def stored(deployment: Deployment, name: str) -> dict[str, bytes]:
    prefix = f"base-models/{name}/"
    listed = deployment.s3.list_objects_v2(Bucket=deployment.artifact_bucket, Prefix=prefix).get("Contents", [])
    return {
        entry["Key"].removeprefix(prefix): deployment.s3.get_object(
            Bucket=deployment.artifact_bucket, Key=entry["Key"]
        )["Body"].read()
        for entry in listed
    }


# ---------------------------------------------------------------- Hugging Face


def test_of_a_hub_repository_only_what_transformers_loads_is_taken_at_one_commit(
    deployment: Deployment, hub: Hub
) -> None:
    marker, said = import_model(deployment, "hf://org/model@main", "hub")
    assert marker["source"] == f"hf://org/model@{COMMIT}" and marker["licence"] == "apache-2.0"
    files = stored(deployment, "hub")
    assert {name: files[name] for name in SHARDED} == SHARDED
    assert set(files) == {*SHARDED, "README.md", "base_model.json"}
    assert not [line for line in hub.requests if "consolidated" in line or "pytorch" in line or ".pth" in line]
    assert any(line.startswith("downloading") for line in said) and any(line.startswith("uploading") for line in said)

    # The second time the hub is asked which commit it is, and nothing more.
    hub.requests.clear()
    assert import_model(deployment, "hf://org/model@main", "hub")[1] == ["hub is imported already"]
    assert len(hub.requests) == 1


def test_a_download_that_breaks_off_goes_on_where_it_was(deployment: Deployment, hub: Hub) -> None:
    shard = "model-00002-of-00002.safetensors"
    hub.cut_once = {shard}
    for _ in range(2):  # the hub's client may go on by itself; if it gives up, the next import does
        try:
            import_model(deployment, "hf://org/model", "cut")
            break
        except CommandError as error:
            assert "try again" in str(error)
    assert stored(deployment, "cut")[shard] == SHARDS[shard]
    first = [line for line in hub.requests if line.startswith("GET") and "00001-of-00002" in line]
    assert len(first) == 1, "what was complete is not read again"
    assert len([line for line in hub.requests if line.startswith("GET") and shard in line]) == 2


def test_a_file_that_is_not_what_the_hub_says_is_refused_and_nothing_is_uploaded(
    deployment: Deployment, hub: Hub
) -> None:
    hub.corrupt = {"model-00001-of-00002.safetensors"}
    with pytest.raises(CommandError, match=r"model-00001.*has the SHA-256 .*, the hub says"):
        import_model(deployment, "hf://org/model", "corrupt")
    assert stored(deployment, "corrupt") == {}


def test_a_gated_model_tells_what_to_do_and_takes_the_token_from_either_place(
    deployment: Deployment, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_right"
    with pytest.raises(CommandError, match=r"is gated: accept its conditions at .*org/model.*HF_TOKEN.*--token-secret"):
        import_model(deployment, "hf://org/model", "gated")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CommandError, match="this token may not read it"):
        import_model(deployment, "hf://org/model", "gated")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CommandError, match="secret 'hub' cannot be read"):
        import_model(deployment, "hf://org/model", "gated", token_secret="hub")
    deployment.client("secretsmanager").create_secret(Name="hub", SecretString="hf_right\n")
    assert import_model(deployment, "hf://org/model", "gated", token_secret="hub")[0]["licence"] == "apache-2.0"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://org/model@nowhere", "has no revision 'nowhere'"),
        ("hf://org/another", "is not there, or is private"),
        ("hf://not a name", "cannot be read"),
        ("gs://bucket/model", "has the scheme 'gs'; allowed: a folder, or one of hf://, s3://"),
        ("/no/such/folder", "neither a folder nor one of"),
        ("s3://no-such-bucket/model", "cannot be listed"),
        ("jumpstart://huggingface-llm-unknown", r"finetune jumpstart lookup huggingface-llm-unknown"),
    ],
)
def test_a_source_that_cannot_be_reached_is_one_clear_message(
    deployment: Deployment, hub: Hub, source: str, said: str
) -> None:
    with pytest.raises(CommandError, match=said):
        import_model(deployment, source, "nothing")


# ---------------------------------------------------------------- folders


def test_a_pickle_is_refused_by_name_and_left_out_where_safetensors_are_there(
    deployment: Deployment, tmp_path: Path
) -> None:
    folder = hub_server.write(
        tmp_path / "p", {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"p"}
    )
    with pytest.raises(CommandError, match=r"pytorch_model\.bin is pickled, which runs code"):
        import_model(deployment, str(folder), "pickled")
    (folder / "model.safetensors").write_bytes(safetensors(b"w"))
    assert "left out: pytorch_model.bin" in import_model(deployment, str(folder), "pickled")[1]
    assert "pytorch_model.bin" not in stored(deployment, "pickled")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors": b"weights"}, "is no safetensors file, or is cut off"),
        ({"model.safetensors": safetensors(b"weights")[:-1]}, "it is cut off or changed"),
        ({"model.safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00[]"}, "its header cannot be read"),
        ({"model.safetensors": b""}, "is no safetensors file"),
        ({"model.gguf": b"not a GGUF"}, r"model\.gguf is no GGUF file"),
        ({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, r"2 \.gguf files, of which one is to be chosen: a\.gguf, b\.gguf"),
        ({"a.safetensors": b"", "b.safetensors": b""}, "says how they belong together"),
        ({"model.safetensors.index.json": INDEX.encode()}, "model-00001-of-00002.safetensors is missing, which"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../../secret.safetensors"}}'},
            "leads out of the folder",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "x.bin"}}', "x.bin": b"p"},
            "x.bin is no .safetensors",
        ),
        ({"model.safetensors.index.json": b'{"weights": []}'}, "is no index of weights"),
    ],
)
def test_weights_that_cannot_be_trusted_are_refused(
    deployment: Deployment, tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    folder = hub_server.write(tmp_path / "m", {"config.json": b"{}", "tokenizer.json": b"{}", **files})
    with pytest.raises(CommandError, match=said):
        import_model(deployment, str(folder), "untrusted")
    assert stored(deployment, "untrusted") == {}


def test_a_link_out_of_the_folder_is_refused_by_name(deployment: Deployment, model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    (model / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CommandError, match=r"extra\.json is a link to .*secret\.json, out of the folder"):
        import_model(deployment, str(model), "linked")


def test_the_licence_of_a_folder_is_that_of_its_card_or_its_file(deployment: Deployment, model: Path) -> None:
    assert import_model(deployment, str(model), "without")[0]["licence"] is None
    assert "not told by the source" in base_models.described(deployment, "without")
    (model / "LICENSE").write_text("Apache", encoding="utf-8")
    assert import_model(deployment, str(model), "file")[0]["licence"] == "LICENSE"
    (model / "README.md").write_text("---\nlicense: 'llama3'\n---\nlicense: no\n", encoding="utf-8")
    assert import_model(deployment, str(model), "card")[0]["licence"] == "llama3"


def test_an_import_that_is_killed_goes_on_and_ends_equal(deployment: Deployment, tmp_path: Path) -> None:
    shards = {f"model-0000{n}-of-00004.safetensors": safetensors(os.urandom(3_000_000)) for n in range(1, 5)}
    index = json.dumps({"weight_map": {name: name for name in shards}}).encode()
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": index, **shards}
    folder = hub_server.write(tmp_path / "big", files)
    program = (
        "import sys, time; from cli import base_models; from cli.aws import Deployment; from config.settings import *\n"
        "settings = Settings(name='cli', account='123456789012', base_model=BaseModelSettings(name='tiny'))\n"
        "def say(text):\n    print(text, flush=True); time.sleep(0.1)\n"
        "base_models.import_model(Deployment(settings, sys.argv[1]), sys.argv[2], 'killed', say)"
    )
    command = [sys.executable, "-c", program, str(deployment.endpoint_url), str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("uploading") and "00002-of-00004" in line:
                process.send_signal(signal.SIGKILL)
                break
    there = stored(deployment, "killed")
    assert "base_model.json" not in there and len(set(there) & set(shards)) >= 2 and len(there) < len(files)
    times = {
        name: deployment.s3.head_object(Bucket=deployment.artifact_bucket, Key=f"base-models/killed/{name}")[
            "LastModified"
        ]
        for name in there
    }
    time.sleep(1.1)  # S3's times are whole seconds

    marker, _ = import_model(deployment, str(folder), "killed")
    whole = stored(deployment, "killed")
    assert {name: whole[name] for name in files} == files
    assert marker["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, then in times.items():  # what was there with its digest was not sent again
        head = deployment.s3.head_object(Bucket=deployment.artifact_bucket, Key=f"base-models/killed/{name}")
        assert head["LastModified"] == then, name


def test_a_file_with_other_bytes_from_an_earlier_try_is_sent_again(deployment: Deployment, model: Path) -> None:
    deployment.s3.put_object(
        Bucket=deployment.artifact_bucket,
        Key="base-models/stale/config.json",
        Body=b"[]",
        Metadata={"sha256": "0" * 64},
    )
    import_model(deployment, str(model), "stale")
    assert stored(deployment, "stale")["config.json"] == b"{}"


# ---------------------------------------------------------------- S3 and archives


def archive(members: dict[str, bytes | None], **links: str) -> bytes:
    """A .tar.gz; `links` are symbolic links by name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return packed.getvalue()


def test_a_prefix_and_an_archive_in_s3_give_the_same_model(deployment: Deployment) -> None:
    bucket = deployment.raw_bucket
    for name, content in {**SHARDED, "pytorch_model.bin": b"p", "deep/er.json": b"{}"}.items():
        deployment.s3.put_object(Bucket=bucket, Key=f"models/mine/{name}", Body=content)
    packed = archive({f"wrapped/{name}": content for name, content in SHARDED.items()})
    deployment.s3.put_object(Bucket=bucket, Key="models/mine.tar.gz", Body=packed)
    of_prefix, _ = import_model(deployment, f"s3://{bucket}/models/mine/", "prefix")
    of_archive, _ = import_model(deployment, f"s3://{bucket}/models/mine.tar.gz", "archive")
    assert of_prefix["digest"] == of_archive["digest"]
    assert set(stored(deployment, "prefix")) == {*SHARDED, "base_model.json"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (archive({"../evil.json": b"{}"}), "is a link or leads out of the folder"),
        (archive({"/etc/evil.json": b"{}"}), "is a link or leads out of the folder"),
        (archive({}, evil="/etc/passwd"), "is a link or leads out of the folder"),
        (b"no archive", "cannot be unpacked"),
        (archive(dict(SHARDED))[:-40], "cannot be unpacked"),
    ],
)
def test_an_archive_that_would_do_harm_is_refused_and_leaves_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a" / "archive.tar.gz"
    hub_server.write(path.parent, {path.name: content})
    with pytest.raises(CommandError, match=said):
        model_files.unpack(path, tmp_path / "a" / "model")
    assert not (tmp_path / "a" / "model").exists() and not (tmp_path / "evil.json").exists()


def test_an_archive_that_would_fill_the_disk_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "GROWTH_FREE_BYTES", 1000)
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(archive({"zeros.safetensors": bytes(2_000_000)}))
    with pytest.raises(CommandError, match="unpacks to more than 20 times its size"):
        model_files.unpack(path, tmp_path / "model")
    assert sum(found.stat().st_size for found in tmp_path.rglob("*") if found.is_file()) == path.stat().st_size


@given(st.text(alphabet=st.sampled_from("./\\ab\0"), min_size=1, max_size=12))
def test_no_name_of_a_chosen_file_leads_out_of_its_folder(name: str) -> None:
    weights = f"{name}.safetensors"
    sizes = {"config.json": 2, "tokenizer.json": 2, weights: 10}
    try:
        chosen = model_files.choose(sizes, {"a": weights}, "source")
    except CommandError:
        return
    assert all("/" not in file and "\\" not in file and "\0" not in file for file in chosen.names)


def test_the_command_shows_digest_size_and_licence(deployment: Deployment, model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        'name: cli\naccount: "123456789012"\nbase_model:\n  name: tiny\n', encoding="utf-8"
    )
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": str(deployment.endpoint_url),
        "AWS_ACCESS_KEY_ID": LOCAL_CREDENTIALS["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": LOCAL_CREDENTIALS["aws_secret_access_key"],
    }
    command = [
        sys.executable,
        "-m",
        "cli",
        "import-model",
        str(model),
        "--name",
        "shown",
        "-e",
        str(tmp_path / "c.yaml"),
    ]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "in 3 files" in finished.stdout and "licence: not told by the source" in finished.stdout
