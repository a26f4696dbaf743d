"""What comes from outside to the user's machine: model archives that would do harm, texts on its pages and in the terminal."""

import bz2
import gzip
import io
import lzma
import tarfile
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import executions, history_page, model_files
from cli.console import CommandError, console, escape, plain
from cli.history import Run
from pipeline_steps.contract import metrics

ATTACK = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"' onload=alert(3) --></title></style></table>"


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a tar archive's member, whose bytes may or may not follow."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.USTAR_FORMAT)


def unpacked(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "archive").write_bytes(content)
    model_files.unpack(tmp_path / "archive", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    packed = gzip.compress(header("x", 7 * 2**30, kind) + bytes(2**24))
    with pytest.raises(CommandError, match=r"cannot be unpacked: .*a header says that it has 7\d+ bytes"):
        unpacked(tmp_path, packed)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_an_archive_holds_files_and_folders_only(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(CommandError, match=r"holds .config\.json., which is a link or leads out of the folder"):
        unpacked(tmp_path, header("config.json", 0, kind) + bytes(1024))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_may_be_compressed_by_each_of_the_usual_ways(tmp_path: Path, compress: type[bytes]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("a" * 150 + "/config.json")  # a name that needs a header of its own
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    assert (unpacked(tmp_path, compress(packed.getvalue())) / ("a" * 150) / "config.json").read_bytes() == b"{}"


@given(st.binary(max_size=2000), st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress]))
def test_any_bytes_are_an_archive_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, compress: type[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    try:
        unpacked(folder, compress(header("x", len(content)) + content))
    except CommandError as error:
        assert "archive" in str(error)
    assert {path.name for path in folder.iterdir()} <= {"archive", "model", ".model.partial"}


def test_code_beside_the_weights_never_comes_along() -> None:
    sizes = dict.fromkeys(["config.json", "tokenizer.json", "model.safetensors"], 1)
    code = ["modeling_x.py", "model.py", "setup.sh", "requirements.in", "x.so", "optimizer.pt", "a/config.json"]
    chosen = model_files.choose({**sizes, **dict.fromkeys(code, 1)}, None, "source")
    assert set(chosen.names) == set(sizes) and set(chosen.left_out) == set(code)


def test_names_and_reasons_in_the_history_are_text_and_no_script_runs_there() -> None:
    (metric, *_) = metrics.DEFINITIONS
    run = Run(
        arn=f"arn:x/{ATTACK}",
        status=ATTACK,
        started=datetime(2026, 11, 27, tzinfo=UTC),
        seconds=1.0,
        parameters={"Epoch": ATTACK, "LearningRate": ATTACK, "DatasetManifest": ATTACK},
        metrics={metric: {"base": 1.0, "tuned": 2.0}},
        passed=False,
        package=f"arn:x/{ATTACK}",
        reason=ATTACK,
    )
    page = history_page.render(ATTACK, [run, replace(run, passed=True)])
    assert "<script" not in page and "<img" not in page and "<!--" not in page and page.count("</style>") == 1
    assert "default-src 'none'" in page and "script-src" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and 'title="&lt;script' in page


# ---------------------------------------------------------------- the terminal

# Sets the window's title, writes to the clipboard, moves up and overwrites; and rich's own markup, which would end a style.
SEQUENCES = "\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07\x1b[1A\x1b[2K\rall is well\x9b31m [/bold] [link=x]"


def test_a_failure_that_holds_control_sequences_and_markup_is_told_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    step = executions.StepView("PrepareData", "Processing", "Failed", 1.0, reason=SEQUENCES)
    view = executions.ExecutionView("arn:x", "Failed", SEQUENCES, 1.0, [step])
    console.print(executions.render(view))
    console.print(f"[red]error:[/] {escape(SEQUENCES)}")
    said = capsys.readouterr().out
    assert "\x1b]" not in said and "\x07" not in said and "\x9b" not in said and "\x1b[2K" not in said
    assert said.count(r"\x1b]52;c;ZXZpbA==\x07") == 2 and "[/bold] [link=x]" in said.replace("\n", "")


@given(st.text())
def test_any_text_is_told_without_controls_and_keeps_all_else(text: str) -> None:
    told = plain(text)
    assert not [letter for letter in told if unicodedata.category(letter) == "Cc" and letter not in "\n\t"]
    assert plain(told) == told
    if not any(unicodedata.category(letter) == "Cc" for letter in text):
        assert told == text
