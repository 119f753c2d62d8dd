"""Plans and writes a llamafile: a runtime, default arguments and weights in one executable.

    runtime, byte for byte      an executable, often with its own zip directory at its end
    .args                       a zip entry: default arguments
    NOTICE                      a zip entry: Gemma's notice, if the weights are Gemma's
    zeros                       up to the alignment
    NAME.gguf                   a zip entry, stored; its data begins at a multiple of 65536
    zip directory               the runtime's entries, then ours

The runtime finds the directory at the end of its own file and maps the weights from there.

Source: docs/creating_llamafiles.md and llamafile/llamafile.c in
https://github.com/mozilla-ai/llamafile
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemquant import __version__
from gemquant.core.artifact.staged_files import file_problems, staged_files
from gemquant.core.protocols import Progress
from gemquant.core.untrusted import sha256_of
from gemquant.errors import ArtifactError, GemquantError, OutputError, UnsupportedError, refuse
from gemquant.formats.gguf.find import SUFFIX, GgufFile
from gemquant.formats.llamafile_archive import ALIGNMENT, Entry, Layout, Member, lay_out, write
from gemquant.formats.llamafile_record import (
    ARGUMENTS_ENTRY,
    LlamafileRecord,
    PartRecord,
    RuntimeRecord,
    WeightsRecord,
    arguments_file,
    read_back,
    read_record,
    record_path,
)
from gemquant.formats.llamafile_runtime import (
    Digests,
    Runtime,
    Trial,
    ask_version,
    digests_of,
)

WINDOWS_LIMIT = 1 << 32
"""Windows starts no executable of 4 GiB or more."""

Mode = Literal["chat", "server", "cli"]

NOTICE_ENTRY = "gemma/NOTICE"
"""Required by Gemma's licences in every copy; no runtime has an entry of this name."""

_FORBIDDEN_IN_NAMES = frozenset("@/\\'\"$# \t\r\n:")
"""``@`` separates archive and entry in the runtime's paths; the others need quotes."""


@dataclass(frozen=True)
class LlamafileRequest:
    """What to pack. mode: None for the runtime's default. extra: further default arguments.

    external: leave the weights in a separate file.
    """

    weights: GgufFile
    runtime: Runtime
    out: Path
    mode: Mode | None = None
    extra: Sequence[str] = ()
    external: bool = False

    @property
    def weights_name(self) -> str:
        """Name of the weights, in the zip or next to the executable."""
        name = self.weights.path.name
        return "".join("-" if sign in _FORBIDDEN_IN_NAMES else sign for sign in name)

    @property
    def weights_place(self) -> Path:
        """Path of external weights."""
        return self.out.with_name(self.weights_name)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Default arguments of the llamafile."""
        name = self.weights_name if self.external else f"/zip/{self.weights_name}"
        mode = () if self.mode is None else (f"--{self.mode}",)
        return ("-m", name, *mode, *self.extra)


@dataclass(frozen=True)
class LlamafilePlan:
    """The layout of a requested file; nothing is written yet.

    digests: of the weights. offset: of their data, None if external. copied: external weights must
    be copied next to the executable.
    """

    request: LlamafileRequest
    members: Sequence[Member]
    layout: Layout
    digests: Digests
    offset: int | None
    copied: bool

    @property
    def too_large_for_windows(self) -> bool:
        """Whether Windows refuses to start the file."""
        return self.layout.size >= WINDOWS_LIMIT


@dataclass(frozen=True)
class Llamafile:
    """A finished llamafile. trial: outcome of running it; None if it was not to be run."""

    path: Path
    record: LlamafileRecord
    trial: Trial | None


def plan_llamafile(request: LlamafileRequest, *, force: bool, progress: Progress) -> LlamafilePlan:
    """Check everything, hash the weights and compute the layout; raise all problems together."""
    refuse(_problems(request))
    digests = digests_of(request.weights.path, task="hashing weights", progress=progress)
    if request.weights.sha256 not in {None, digests.sha256}:
        raise ArtifactError(
            f"{request.weights.path} is not the file that its manifest describes: sha256 "
            f"{digests.sha256}, not {request.weights.sha256}."
        )
    members = [_member(ARGUMENTS_ENTRY, arguments_file(request.arguments))]
    if notice := request.weights.notice:
        members.append(_member(NOTICE_ENTRY, notice.encode()))
    if not request.external:
        entry = Entry(request.weights_name, digests.bytes, digests.crc32)
        members.append(Member(entry, request.weights.path, ALIGNMENT))
    layout = lay_out(request.runtime.bytes, request.runtime.entries, members)
    copied = request.external and not _is_in_place(request, digests)
    needed = layout.size + digests.bytes * copied
    refuse(_output_problems(request, force=force, copied=copied, needed_bytes=needed))
    offset = None if request.external else layout.places[-1].data_offset
    return LlamafilePlan(request, members, layout, digests, offset, copied)


def build_llamafile(plan: LlamafilePlan, *, run: bool, progress: Progress) -> Llamafile:
    """Write the file, read it back, run it if ``run``, then move it to its path."""
    request = plan.request
    files = [record_path(request.out), request.out]
    if plan.copied:
        files.insert(0, request.weights_place)
    with staged_files(files) as scratch:
        packed = scratch / request.out.name
        progress.note(f"writing {request.out}")
        write(packed, request.runtime.path, plan.members, plan.layout)
        if plan.copied:
            shutil.copyfile(request.weights.path, scratch / request.weights_name)
        record = _record(plan, packed)
        read_back(
            packed,
            record,
            weights_folder=scratch if plan.copied else request.out.parent,
            progress=progress,
        )
        trial = ask_version(packed) if run else None
        if trial is not None:
            runtime = record.runtime.model_copy(update={"version": trial.version})
            record = record.model_copy(update={"runtime": runtime})
        record_path(packed).write_bytes(record.to_json())
    return Llamafile(request.out, record, trial)


# ---------------------------------------------------------------- checks


def _problems(request: LlamafileRequest) -> Iterator[GemquantError]:
    weights = request.weights
    if weights.parts > 1:
        yield UnsupportedError(
            f"{weights.path} is one of {weights.parts} parts; a llamafile holds one GGUF file.",
            hint="Merge them first: llama-gguf-split --merge FIRST-PART OUT.gguf",
        )
    bundled = [e.name for e in request.runtime.entries if e.name.lower().endswith(SUFFIX)]
    if bundled:
        yield UnsupportedError(
            f"{request.runtime.origin} already holds weights: {', '.join(bundled)}.",
            hint="Use a runtime without weights: github.com/mozilla-ai/llamafile/releases",
        )


def _output_problems(
    request: LlamafileRequest, *, force: bool, copied: bool, needed_bytes: int
) -> list[GemquantError]:
    ours = [request.out, record_path(request.out)]
    replaceable: list[Path] = []
    if force and request.out.exists():
        try:
            read_record(request.out)
            replaceable = ours
        except ArtifactError as error:
            raise OutputError(
                f"{request.out}: --force replaces llamafiles only: {error.message}",
                hint="Choose another path with -o.",
            ) from None
    files = [request.weights_place, *ours] if copied else ours
    return file_problems(files, replaceable=replaceable, needed_bytes=needed_bytes)


def _is_in_place(request: LlamafileRequest, digests: Digests) -> bool:
    place = request.weights_place
    return (
        place.is_file()
        and place.stat().st_size == digests.bytes
        and (place.samefile(request.weights.path) or sha256_of(place) == digests.sha256)
    )


# ---------------------------------------------------------------- writing


def _member(name: str, content: bytes) -> Member:
    return Member(Entry(name, len(content), zlib.crc32(content)), content)


def _record(plan: LlamafilePlan, packed: Path) -> LlamafileRecord:
    request, weights = plan.request, plan.request.weights
    ours = {member.entry.name for member in plan.members}
    license_ = weights.metadata.get("general.license")
    return LlamafileRecord(
        file=PartRecord(
            name=request.out.name, bytes=packed.stat().st_size, sha256=sha256_of(packed)
        ),
        runtime=RuntimeRecord(
            origin=request.runtime.origin,
            bytes=request.runtime.bytes,
            sha256=request.runtime.sha256,
            version=None,
            entries=tuple(e.name for e in request.runtime.entries if e.name not in ours),
        ),
        weights=WeightsRecord(
            name=request.weights_name,
            bytes=plan.digests.bytes,
            sha256=plan.digests.sha256,
            offset=plan.offset,
            architecture=str(weights.metadata.get("general.architecture", "unknown")),
            license=license_ if isinstance(license_, str) else None,
        ),
        arguments=request.arguments,
        libraries={"gemquant": __version__},
    )
