"""Executables that read a llamafile as a llamafile runtime does: the standard library is theirs.

A real runtime is downloaded by the user; no package registry has one. These find the directory at
the end of their own file, split ``.args`` and map the weights from where they lie.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

PROGRAM = """
import json, mmap, shlex, struct, sys, zipfile

me = sys.argv[0]
with zipfile.ZipFile(me) as archive:
    names = archive.namelist()
    if ".args" in names:
        given = []
        for line in shlex.split(archive.read(".args").decode()):
            given += sys.argv[1:] if line == "..." else [line]
    else:
        given = sys.argv[1:]
    if "--version" in given:
        print("tiny v1.2.3")
        sys.exit(0)
    weights = given[given.index("-m") + 1]
    page = archive.read("web/index.html").decode() if "web/index.html" in names else None
    begin = ""
    if weights.startswith("/zip/"):
        info = archive.getinfo(weights.removeprefix("/zip/"))
        with open(me, "rb") as file:
            file.seek(info.header_offset)
            name, extra = struct.unpack("<HH", file.read(30)[26:30])
            offset = info.header_offset + 30 + name + extra
            with mmap.mmap(file.fileno(), 4, access=mmap.ACCESS_READ, offset=offset) as mapped:
                begin = mapped[:].decode()
    else:
        with open(weights, "rb") as file:
            begin = file.read(4).decode()
print(json.dumps({"arguments": given, "page": page, "weights_begin_with": begin}))
"""

PAGE = "<p>the runtime's own page</p>"


def write_script_runtime(path: Path) -> Path:
    """A runtime without a zip: a shell script, as a portable executable is one to a shell."""
    path.write_text("#!/bin/sh\necho script 4.5\nexit\n")
    path.chmod(0o755)
    return path


def write_zip_runtime(path: Path, *, relative_offsets: bool = False) -> Path:
    """A runtime with entries of its own, one of them deflated, and a working program.

    relative_offsets: as ``cat executable archive.zip`` leaves them, counted from the archive.
    """
    head = f"#!{sys.executable}\n".encode()
    if relative_offsets:
        bare = path.with_name(f"{path.name}.zip")
        with zipfile.ZipFile(bare, "w") as archive:
            _fill(archive)
        path.write_bytes(head + bare.read_bytes())
        bare.unlink()
    else:
        with path.open("wb") as file:
            file.write(head)
            with zipfile.ZipFile(file, "w") as archive:
                _fill(archive)
    path.chmod(0o755)
    return path


def _fill(archive: zipfile.ZipFile) -> None:
    archive.writestr("__main__.py", PROGRAM)
    page = zipfile.ZipInfo("web/index.html", (2024, 2, 29, 12, 0, 0))
    page.compress_type = zipfile.ZIP_DEFLATED
    page.external_attr = 0o100640 << 16
    page.comment = b"a comment"
    archive.writestr(page, PAGE)
