"""Reading whole files that are damaged or hostile."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemquant.calibration.documents import read_user_file
from gemquant.core.artifact.finalize import read_manifest
from gemquant.core.artifact.staged_files import file_problems
from gemquant.core.recipe import SETTINGS, read_settings
from gemquant.core.targets import read_target
from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import (
    ArtifactError,
    CalibrationError,
    CheckpointError,
    GemquantError,
    UsageError,
)
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.checkpoint.lora import read_lora_config
from gemquant.formats.checkpoint.tokenizer_files import TokenizerFiles
from gemquant.formats.gguf.imatrix import read_imatrix
from gemquant.measure.gate.budget import read_budgets
from tests.helpers.tiny_gemma import tiny_tokenizer

READERS = [
    pytest.param("r.json", lambda path: read_settings(path, SETTINGS), UsageError, id="recipe"),
    pytest.param("r.toml", lambda path: read_settings(path, SETTINGS), UsageError, id="toml"),
    pytest.param("t.toml", read_target, UsageError, id="target"),
    pytest.param("b.toml", read_budgets, UsageError, id="budget"),
    pytest.param("i.gguf", read_imatrix, CheckpointError, id="imatrix"),
    pytest.param("config.json", read_json_object, CheckpointError, id="config"),
    pytest.param(
        "manifest.json", lambda path: read_manifest(path.parent), ArtifactError, id="manifest"
    ),
    pytest.param(
        "c.jsonl", lambda path: read_user_file(path, flag="--calib"), CalibrationError, id="text"
    ),
]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on this system")
@pytest.mark.parametrize(("name", "read", "error"), READERS)
def test_a_fifo_is_refused_at_once(tmp_path: Path, name, read, error):
    os.mkfifo(tmp_path / name)
    with pytest.raises(error, match="cannot be read: not a regular file"):
        read(tmp_path / name)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero on this system")
@pytest.mark.parametrize(("name", "read", "error"), READERS)
def test_a_link_to_a_device_is_refused_at_once(tmp_path: Path, name, read, error):
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(error, match="cannot be read: not a regular file"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[" * 100_000, "not JSON: nested more than 100 deep."),
        ("a.json", b"[" * 200 + b"]" * 200, "not JSON: nested more than 100 deep."),
        ("a.json", b'{"a": ' * 102 + b"1" + b"}" * 102, "not JSON: nested more than 100 deep."),
        ("a.json", b"\xff", "not JSON: 'utf-8' codec can't decode byte 0xff in position 0"),
        ("a.json", b"1" * 5000, "not JSON: Exceeds the limit"),
        ("a.toml", b"a = " + b"[" * 20_000, "not TOML: nested more than 100 deep."),
        ("a.toml", b"a." * 20_000 + b"a = 1", "not TOML: nested more than 100 deep."),
        ("a.toml", b"a." * 200 + b"a = 1", "not TOML: nested more than 100 deep."),
        ("a.toml", b"a." * 100_000 + b"a = 1", "200005 bytes; at most 64000 are read."),
        ("a.toml", b"\xff = 1", "not TOML: 'utf-8' codec can't decode byte 0xff in position 0"),
        ("folder", None, "cannot be read: Is a directory."),
        ("a" * 5000, None, "cannot be read: File name too long."),
        ("a\0b", None, "cannot be read: embedded null byte."),
    ],
)
def test_damaged_content_is_a_clean_error_in_a_second(tmp_path: Path, name, content, message):
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    started = time.monotonic()
    with pytest.raises(UsageError) as caught:
        UntrustedFile(tmp_path / name, 1_000_000).json_or_toml()
    assert message in caught.value.message
    assert time.monotonic() - started < 2


def test_a_hundred_levels_are_read(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b"[" * 100 + b"]" * 100)
    assert UntrustedFile(tmp_path / "a.json", 200).json() != []


def test_an_output_that_is_no_regular_file_is_never_replaceable(tmp_path: Path):
    place = tmp_path / "out.json"
    os.mkfifo(place)
    (problem,) = file_problems([place], replaceable=[place], needed_bytes=0)
    assert isinstance(problem, GemquantError)
    assert problem.exit_code == 7
    assert problem.message == f"{place} is not a regular file."


@pytest.mark.parametrize("alpha", [10**400, 1e39, -(10**309)])
def test_a_lora_alpha_beyond_float32_is_refused(alpha):
    with pytest.raises(CheckpointError, match=r"lora_alpha .*: must be a number"):
        read_lora_config({"peft_type": "LORA", "r": 8, "lora_alpha": alpha}, "l")


def test_a_panic_of_the_tokenizer_library_is_a_checkpoint_error_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
):
    content = json.loads(tiny_tokenizer().to_str())
    content["model"]["continuing_subword_prefix"] = "x" * 5000
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read: range end index"):
        _ = TokenizerFiles("m", {"tokenizer.json": json.dumps(content).encode()}).tokenizer
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's closed streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_defect(closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m gemquant targets {closed}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


def test_a_key_given_twice_is_refused_in_a_recipe(tmp_path: Path):
    recipe = tmp_path / "r.json"
    recipe.write_text('{"seq_len": 32, "seq_len": 64}')
    with pytest.raises(UsageError) as caught:
        read_settings(recipe, SETTINGS)
    assert caught.value.message == f"{recipe}: 'seq_len' is given twice."


def test_an_encoding_without_a_character_is_no_defect():
    done = subprocess.run(
        [sys.executable, "-m", "gemquant", "show", "nothere…"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 6
    assert done.stderr == "error: nothere?: no such file or folder.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_stdout_exits_seven():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gemquant", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr == "error: stdout cannot be written: No space left on device.\n"
    assert done.returncode == 7
