from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path

import pytest

from gemquant.errors import ArtifactError, UnsupportedError, UsageError
from gemquant.formats.llamafile_runtime import (
    ask_version,
    bundled_entries,
    checked_sha256,
    open_runtime,
)
from tests.helpers.tiny_runtime import write_script_runtime, write_zip_runtime


def offset_in(record: bytes) -> int:
    (offset,) = struct.unpack_from("<I", record, 42)
    return int(offset)


def test_an_executable_without_a_zip_has_no_entries(tmp_path: Path):
    assert bundled_entries(write_script_runtime(tmp_path / "runtime")) == []


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_offsets_are_counted_from_the_beginning_of_the_file(tmp_path: Path, relative: bool):
    path = write_zip_runtime(tmp_path / "runtime", relative_offsets=relative)
    content = path.read_bytes()
    for entry in bundled_entries(path):
        begin = offset_in(entry.record)
        assert content[begin : begin + 4] == b"PK\x03\x04"
        assert content[begin + 30 :].startswith(entry.name.encode())


def test_a_zip64_directory_is_read(tmp_path: Path):
    path = tmp_path / "runtime"
    with path.open("wb") as file:
        file.write(b"#!/bin/sh\n")
        with (
            zipfile.ZipFile(file, "w") as archive,
            archive.open("page", "w", force_zip64=True) as entry,
        ):
            entry.write(b"content")
    assert [entry.name for entry in bundled_entries(path)] == ["page"]


def test_a_damaged_local_header_is_found(tmp_path: Path):
    path = write_zip_runtime(tmp_path / "runtime")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04")] = 0
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match="cannot be copied"):
        bundled_entries(path)


def test_a_truncated_directory_is_found(tmp_path: Path):
    path = write_zip_runtime(tmp_path / "runtime")
    content = path.read_bytes()
    begin = content.index(b"PK\x01\x02")
    path.write_bytes(content[:begin] + content[begin + 40 :])
    with pytest.raises(UnsupportedError, match="cannot be copied"):
        bundled_entries(path)


def test_a_runtime_that_is_not_the_expected_one_is_refused(tmp_path: Path):
    path = write_script_runtime(tmp_path / "runtime")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ArtifactError, match=rf"sha256 {found}, not {'0' * 64}"):
        open_runtime(path, origin="runtime", sha256="0" * 64)


def test_an_empty_runtime_is_refused(tmp_path: Path):
    (tmp_path / "runtime").touch()
    with pytest.raises(UsageError, match=r"0 B; must be from 1 B to 2\.00 GB"):
        open_runtime(tmp_path / "runtime", origin="runtime", sha256=None)


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63])
def test_what_is_no_sha256_is_refused(text: str):
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        checked_sha256(text)


def test_a_shell_script_that_names_no_interpreter_runs_in_a_shell(tmp_path: Path):
    path = tmp_path / "ape"
    path.write_text("MZqFpD='\n'\necho llamafile v0.10.1\nexit 0\n")
    path.chmod(0o755)
    assert ask_version(path).version == "llamafile v0.10.1"


def test_an_answer_without_a_number_is_no_version(tmp_path: Path):
    path = tmp_path / "runtime"
    path.write_text("#!/bin/sh\necho illegal option\n")
    path.chmod(0o755)
    trial = ask_version(path)
    assert (trial.version, trial.not_run) == (None, "--version printed 'illegal option'")


def test_a_runtime_that_hangs_is_stopped(tmp_path: Path):
    path = tmp_path / "runtime"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    assert ask_version(path, seconds=0.2).not_run == "no output of --version within 0.2 s"


def test_a_runtime_for_another_system_is_not_run(tmp_path: Path):
    path = tmp_path / "runtime"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(200))
    path.chmod(0o755)
    trial = ask_version(path)
    assert trial.version is None
    assert trial.not_run is not None
