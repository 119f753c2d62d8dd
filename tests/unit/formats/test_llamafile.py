from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from gemquant.core.protocols import Silence
from gemquant.errors import ArtifactError, OutputError, UnsupportedError
from gemquant.formats import llamafile as build
from gemquant.formats import llamafile_archive as archive
from gemquant.formats.gguf.find import open_gguf
from gemquant.formats.llamafile import Llamafile, LlamafileRequest, Mode
from gemquant.formats.llamafile_record import (
    LlamafileRecord,
    RuntimeRecord,
    WeightsRecord,
    entries_in,
    read_record,
    verify,
)
from gemquant.formats.llamafile_runtime import open_runtime
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.tiny_runtime import PAGE, write_script_runtime, write_zip_runtime


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf")


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return write_zip_runtime(tmp_path / "tiny-1.2.3")


def pack(
    weights: Path,
    runtime: Path,
    out: Path,
    *,
    mode: Mode | None = None,
    extra: Sequence[str] = (),
    external: bool = False,
    force: bool = False,
    run: bool = False,
) -> Llamafile:
    request = LlamafileRequest(
        weights=open_gguf(weights),
        runtime=open_runtime(runtime, origin=runtime.name, sha256=None),
        out=out,
        mode=mode,
        extra=extra,
        external=external,
    )
    planned = build.plan_llamafile(request, force=force, progress=Silence())
    return build.build_llamafile(planned, run=run, progress=Silence())


def run(path: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [str(path.resolve()), *arguments],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_the_file_runs_with_its_arguments_its_page_and_its_weights(
    weights: Path, runtime: Path, tmp_path: Path
):
    out = tmp_path / "gemma.llamafile"
    pack(weights, runtime, out, mode="server", extra=["-p", "It's a test.", "-c", "8192"])
    assert run(out, "--port", "1") == {
        "arguments": [
            *["-m", "/zip/tiny.gguf", "--server", "-p", "It's a test.", "-c", "8192"],
            *["--port", "1"],
        ],
        "page": PAGE,
        "weights_begin_with": "GGUF",
    }


def test_a_runtime_with_offsets_from_its_archive_keeps_its_entries(weights: Path, tmp_path: Path):
    runtime = write_zip_runtime(tmp_path / "runtime", relative_offsets=True)
    pack(weights, runtime, tmp_path / "out")
    assert run(tmp_path / "out")["page"] == PAGE


def test_a_runtime_without_a_zip_gets_one(weights: Path, tmp_path: Path):
    runtime = write_script_runtime(tmp_path / "runtime")
    made = pack(weights, runtime, tmp_path / "out", run=True)
    assert list(entries_in(tmp_path / "out")) == [".args", "gemma/NOTICE", "tiny.gguf"]
    assert made.record.runtime.version == "script 4.5"


def test_the_weights_lie_stored_and_aligned_and_are_the_same_bytes(
    weights: Path, runtime: Path, tmp_path: Path
):
    out = tmp_path / "out"
    pack(weights, runtime, out)
    entry = entries_in(out)["tiny.gguf"]
    assert entry.stored
    assert entry.offset % 65536 == 0
    content = out.read_bytes()
    assert content[entry.offset : entry.offset + entry.size] == weights.read_bytes()
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert archive.read("tiny.gguf") == weights.read_bytes()


def test_the_runtime_comes_first_byte_for_byte(weights: Path, runtime: Path, tmp_path: Path):
    pack(weights, runtime, tmp_path / "out")
    original = runtime.read_bytes()
    assert (tmp_path / "out").read_bytes()[: len(original)] == original


def test_the_runtimes_entries_are_listed_as_they_were(weights: Path, runtime: Path, tmp_path: Path):
    pack(weights, runtime, tmp_path / "out")
    with zipfile.ZipFile(runtime) as before, zipfile.ZipFile(tmp_path / "out") as after:
        for info in before.infolist():
            kept = after.getinfo(info.filename)
            assert (kept.CRC, kept.date_time, kept.external_attr, kept.comment, kept.extra) == (
                *(info.CRC, info.date_time, info.external_attr, info.comment, info.extra),
            )


def test_all_between_the_entries_is_zero(weights: Path, runtime: Path, tmp_path: Path):
    out = tmp_path / "out"
    pack(weights, runtime, out)
    content = out.read_bytes()
    with zipfile.ZipFile(out) as archive:
        before = archive.getinfo("gemma/NOTICE")
        begin = before.header_offset + 30 + len("gemma/NOTICE") + before.file_size
        end = archive.getinfo("tiny.gguf").header_offset
    assert end > begin
    assert not any(content[begin:end])


def test_gemmas_notice_is_inside(weights: Path, runtime: Path, tmp_path: Path):
    pack(weights, runtime, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out") as archive:
        assert b"ai.google.dev/gemma/terms" in archive.read("gemma/NOTICE")


def test_the_record_says_what_it_was_put_together_from(
    weights: Path, runtime: Path, tmp_path: Path
):
    made = pack(weights, runtime, tmp_path / "out", mode="chat", run=True)
    assert made.record == read_record(tmp_path / "out")
    described = json.loads((tmp_path / "out.json").read_bytes())
    assert described.pop("libraries").keys() == {"gemquant"}
    assert described == {
        "schema_version": 1,
        "kind": "llamafile",
        "file": {
            "name": "out",
            "bytes": (tmp_path / "out").stat().st_size,
            "sha256": hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest(),
        },
        "runtime": {
            "origin": "tiny-1.2.3",
            "bytes": runtime.stat().st_size,
            "sha256": hashlib.sha256(runtime.read_bytes()).hexdigest(),
            "version": "tiny v1.2.3",
            "entries": ["__main__.py", "web/index.html"],
        },
        "weights": {
            "name": "tiny.gguf",
            "bytes": weights.stat().st_size,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "offset": 65536,
            "architecture": "gemma2",
            "license": None,
        },
        "arguments": ["-m", "/zip/tiny.gguf", "--chat"],
    }


def test_twice_the_same_gives_the_same_bytes(weights: Path, runtime: Path, tmp_path: Path):
    pack(weights, runtime, tmp_path / "a")
    pack(weights, runtime, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_external_weights_stand_beside_a_small_file(weights: Path, runtime: Path, tmp_path: Path):
    out = tmp_path / "gemma.exe"
    made = pack(weights, runtime, out, external=True)
    assert made.record.weights.offset is None
    assert (tmp_path / "tiny.gguf").read_bytes() == weights.read_bytes()
    assert out.stat().st_size < 10_000
    assert run(out)["weights_begin_with"] == "GGUF"
    verify(out, progress=Silence())


def test_external_weights_that_stand_there_already_are_used(
    weights: Path, runtime: Path, tmp_path: Path
):
    beside = tmp_path / "tiny.gguf"
    os.link(weights, beside)
    pack(weights, runtime, tmp_path / "gemma.exe", external=True)
    assert beside.samefile(weights)


def test_other_weights_in_their_place_are_not_replaced(
    weights: Path, runtime: Path, tmp_path: Path
):
    (tmp_path / "tiny.gguf").write_bytes(b"other weights")
    with pytest.raises(OutputError, match=r"tiny\.gguf exists"):
        pack(weights, runtime, tmp_path / "gemma.exe", external=True, force=True)


@pytest.mark.parametrize(
    ("name", "stored"),
    [("a b@c.gguf", "a-b-c.gguf"), ("C:$x'y.gguf", "C--x-y.gguf")],
)
def test_signs_that_the_runtime_interprets_leave_the_name(
    weights: Path, runtime: Path, tmp_path: Path, name: str, stored: str
):
    os.link(weights, tmp_path / name)
    made = pack(tmp_path / name, runtime, tmp_path / "out")
    assert made.record.arguments == ("-m", f"/zip/{stored}")


def test_the_windows_limit_is_known_before_anything_is_written(
    weights: Path, runtime: Path, tmp_path: Path
):
    big = tmp_path / "runtime"
    big.write_bytes(b"#!/bin/sh\n")
    request = LlamafileRequest(
        open_gguf(weights), open_runtime(big, origin="r", sha256=None), tmp_path / "o"
    )
    planned = build.plan_llamafile(request, force=False, progress=Silence())
    assert not planned.too_large_for_windows
    just = build.LlamafilePlan(
        *(request, planned.members, archive.Layout([], b"", 1 << 32), planned.digests, 0, False)
    )
    assert just.too_large_for_windows


def test_a_runtime_that_holds_weights_is_refused(weights: Path, runtime: Path, tmp_path: Path):
    pack(weights, runtime, tmp_path / "first")
    with pytest.raises(UnsupportedError, match=r"already holds weights: tiny\.gguf"):
        pack(weights, tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_an_existing_file_is_not_replaced(weights: Path, runtime: Path, tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        pack(weights, runtime, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_force_replaces_a_llamafile(weights: Path, runtime: Path, tmp_path: Path):
    pack(weights, runtime, tmp_path / "out", mode="chat")
    made = pack(weights, runtime, tmp_path / "out", mode="cli", force=True)
    assert made.record.arguments[-1] == "--cli"
    assert verify(tmp_path / "out", progress=Silence()) == made.record


def test_force_replaces_nothing_else(weights: Path, runtime: Path, tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="--force replaces llamafiles only"):
        pack(weights, runtime, tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_failure_leaves_what_stood_there(
    weights: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "folder"
    folder.mkdir()
    pack(weights, runtime, folder / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "ask_version", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(weights, runtime, folder / "out", mode="cli", force=True, run=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failure_between_two_files_takes_the_first_back(
    weights: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "folder"
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if Path(target) == folder / "out":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="No space left"):
        pack(weights, runtime, folder / "out")
    assert not folder.exists()


def test_a_file_that_is_written_wrongly_never_appears(
    weights: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    honest = archive.write

    def damaging(path: Path, *others: object) -> None:
        honest(path, *others)
        with path.open("r+b") as file:
            file.seek(65536 + 1000)
            file.write(b"\xff\xff\xff\xff")

    monkeypatch.setattr(build, "write", damaging)
    with pytest.raises(ArtifactError, match=r"tiny\.gguf is not the file that was packed"):
        pack(weights, runtime, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (3, "does not begin with the runtime"),
        (65536 + 5, "is not the file that was packed"),
        (65535, "cannot be read"),
        (60000, "is not the file that out.json describes"),
    ],
    ids=["runtime", "weights", "local header", "padding"],
)
def test_a_changed_bit_is_found(
    weights: Path, runtime: Path, tmp_path: Path, offset: int, message: str
):
    pack(weights, runtime, tmp_path / "out")
    flip(tmp_path / "out", offset)
    with pytest.raises(ArtifactError, match=message):
        verify(tmp_path / "out", progress=Silence())


def test_weights_in_parts_are_refused(runtime: Path, tmp_path: Path):
    part = write_tiny_gguf(tmp_path / "a-00001-of-00002.gguf", metadata={"split.count": 2})
    with pytest.raises(UnsupportedError, match="one of 2 parts"):
        pack(part, runtime, tmp_path / "out")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_a_compiled_program_still_starts(weights: Path, tmp_path: Path):
    source = tmp_path / "runtime.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("compiled 1.0"); return 0; }\n')
    subprocess.run(["cc", "-o", tmp_path / "runtime", source], check=True, timeout=60)
    made = pack(weights, tmp_path / "runtime", tmp_path / "out", run=True)
    assert made.record.runtime.version == "compiled 1.0"


def test_every_key_of_the_record_is_documented():
    page = (Path(__file__).parents[3] / "docs" / "llamafile.md").read_text(encoding="utf-8")
    for key in LlamafileRecord.model_fields:
        assert f"`{key}" in page
    for part, model in (("runtime", RuntimeRecord), ("weights", WeightsRecord)):
        for key in model.model_fields:
            assert f"`{part}.{key}`" in page
