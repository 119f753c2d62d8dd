"""Cosmopolitan's own /zip/ file system, which a llamafile runtime is built on, finds what we pack.

The program is its build of file(1): pip install --no-deps cosmo-file==5.46.6
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from gemquant.core.protocols import Silence
from gemquant.formats import llamafile as build
from gemquant.formats import llamafile_archive as archive
from gemquant.formats.gguf.find import find_gguf
from gemquant.formats.llamafile_archive import Entry
from gemquant.formats.llamafile_runtime import open_runtime
from tests.helpers.tiny_gguf import write_tiny_gguf

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(sys.platform != "linux", reason="its wheels are for Linux"),
]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    cosmo_file = pytest.importorskip("cosmo_file")
    path = tmp_path / "file.elf"
    path.write_bytes(cosmo_file.get_binary_path().read_bytes())
    return path


def escaped(content: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in content)


def kind_of(packed: Path, entry: str, magic: Path | None = None) -> str:
    """What the packed program says of a file within itself."""
    rules = ["-m", str(magic)] if magic else []
    command = [packed, "-b", *rules, f"/zip/{entry}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_the_weights_open_under_zip_from_the_first_byte_to_the_last(
    program: Path, tmp_path: Path
) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    runtime = open_runtime(program, origin="file", sha256=None)
    request = build.LlamafileRequest(find_gguf(str(source)), runtime, tmp_path / "packed")
    planned = build.plan_llamafile(request, force=False, progress=Silence())
    made = build.build_llamafile(planned, run=True, progress=Silence())
    content = source.read_bytes()
    rules = tmp_path / "rules"
    rules.write_text(
        "0 string GGUF the weights\n"
        f">{len(content) - 16} string {escaped(content[-16:])} to their end\n"
    )
    assert made.record.runtime.version == "packed-5.46"
    assert kind_of(made.path, "tiny.gguf", rules) == "the weights to their end"
    assert kind_of(made.path, ".args") == "ASCII text"
    # An entry of its own: without it the program knows no kinds at all.
    assert kind_of(made.path, "share/misc/magic.mgc").startswith("magic binary file")


def test_what_lies_past_4_gib_opens_too(program: Path, tmp_path: Path) -> None:
    runtime = open_runtime(program, origin="file", sha256=None)
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    size = (1 << 32) + 12_345
    with weights.open("r+b") as file:
        file.truncate(size)
    members = [
        archive.Member(Entry("big.gguf", size, 0), weights, archive.ALIGNMENT),
        archive.Member(Entry("after", 6, zlib.crc32(b"hello\n")), b"hello\n"),
    ]
    layout = archive.lay_out(runtime.bytes, runtime.entries, members)
    archive.write(tmp_path / "packed", program, members, layout)
    rules = tmp_path / "rules"
    rules.write_text("0 string GGUF the weights\n")
    assert kind_of(tmp_path / "packed", "big.gguf", rules) == "the weights"
    assert kind_of(tmp_path / "packed", "after") == "ASCII text"
