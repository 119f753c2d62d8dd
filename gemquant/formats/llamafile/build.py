"""From weights, runtime and arguments to a finished llamafile, or to nothing at all."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemquant import __version__
from gemquant.core.artifact.card import NOTICE
from gemquant.core.artifact.staged_files import file_problems, staged_files
from gemquant.core.progress import Progress
from gemquant.errors import ArtifactError, GemquantError, OutputError, UnsupportedError, refuse
from gemquant.formats.gguf.find import SUFFIX, GgufFile
from gemquant.formats.llamafile.arguments import arguments_file
from gemquant.formats.llamafile.digests import Digests, digests_of, sha256_of
from gemquant.formats.llamafile.packing import ALIGNMENT, Layout, Member, lay_out, write
from gemquant.formats.llamafile.reading import ARGUMENTS_ENTRY, read_back
from gemquant.formats.llamafile.record import (
    LlamafileRecord,
    PartRecord,
    RuntimeRecord,
    WeightsRecord,
    read_record,
    record_path,
)
from gemquant.formats.llamafile.runtime import Runtime
from gemquant.formats.llamafile.trial import Trial, ask_version
from gemquant.formats.llamafile.zip_records import Entry

WINDOWS_LIMIT = 1 << 32
"""Windows starts no executable of 4 GiB or more."""

Mode = Literal["chat", "server", "cli"]
MODES: tuple[Mode, ...] = ("chat", "server", "cli")

NOTICE_ENTRY = "gemma/NOTICE"
"""What Gemma's terms ask every copy to carry; a name that no runtime uses for its own."""

_FORBIDDEN_IN_NAMES = frozenset("@/\\'\"$# \t\r\n:")
"""``@`` divides an archive from a name in the runtime's own paths; the others need quotes."""


@dataclass(frozen=True)
class Request:
    """What to make. mode: None for the runtime's own default; external: weights in their own file.

    extra: arguments that follow those that name the weights and the mode.
    """

    weights: GgufFile
    runtime: Runtime
    out: Path
    mode: Mode | None = None
    extra: Sequence[str] = ()
    external: bool = False

    @property
    def weights_name(self) -> str:
        """Name of the weights, in the zip or beside the executable."""
        name = self.weights.path.name
        return "".join("-" if sign in _FORBIDDEN_IN_NAMES else sign for sign in name)

    @property
    def weights_place(self) -> Path:
        """Where external weights stand."""
        return self.out.with_name(self.weights_name)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Default arguments of the llamafile."""
        name = self.weights_name if self.external else f"/zip/{self.weights_name}"
        mode = () if self.mode is None else (f"--{self.mode}",)
        return ("-m", name, *mode, *self.extra)


@dataclass(frozen=True)
class Plan:
    """A request with everything at its place; nothing has been written.

    digests: of the weights. offset: of their data, or None where they are external. copied: whether
    external weights must be copied.
    """

    request: Request
    members: Sequence[Member]
    layout: Layout
    digests: Digests
    offset: int | None
    copied: bool

    @property
    def too_large_for_windows(self) -> bool:
        """Whether Windows will refuse to start the file."""
        return self.layout.size >= WINDOWS_LIMIT


@dataclass(frozen=True)
class Made:
    """A finished llamafile. trial: what running it showed, or None where that was not asked for."""

    path: Path
    record: LlamafileRecord
    trial: Trial | None


def plan(request: Request, *, force: bool, progress: Progress) -> Plan:
    """Check everything, hash the weights, and lay the file out; raise all that is wrong at once."""
    refuse(_problems(request))
    digests = digests_of(request.weights.path, task="hashing weights", progress=progress)
    if request.weights.sha256 not in {None, digests.sha256}:
        raise ArtifactError(
            f"{request.weights.path} is not the file that its manifest describes: sha256 "
            f"{digests.sha256}, not {request.weights.sha256}."
        )
    members = [_member(ARGUMENTS_ENTRY, arguments_file(request.arguments))]
    if request.weights.is_gemma:
        members.append(_member(NOTICE_ENTRY, NOTICE.encode()))
    if not request.external:
        entry = Entry(request.weights_name, digests.bytes, digests.crc32)
        members.append(Member(entry, request.weights.path, ALIGNMENT))
    layout = lay_out(request.runtime.bytes, request.runtime.entries, members)
    copied = request.external and not _stands_already(request, digests)
    needed = layout.size + digests.bytes * copied
    refuse(_output_problems(request, force=force, copied=copied, needed_bytes=needed))
    offset = None if request.external else layout.places[-1].data_offset
    return Plan(request, members, layout, digests, offset, copied)


def make(planned: Plan, *, run: bool, progress: Progress) -> Made:
    """Write the file, read it back, run it if asked to, and only then put it in its place."""
    request = planned.request
    files = [record_path(request.out), request.out]
    if planned.copied:
        files.insert(0, request.weights_place)
    with staged_files(files) as scratch:
        packed = scratch / request.out.name
        progress.note(f"writing {request.out}")
        write(packed, request.runtime.path, planned.members, planned.layout)
        if planned.copied:
            shutil.copyfile(request.weights.path, scratch / request.weights_name)
        record = _record(planned, packed)
        read_back(
            packed,
            record,
            weights_folder=scratch if planned.copied else request.out.parent,
            progress=progress,
        )
        trial = ask_version(packed) if run else None
        if trial is not None:
            runtime = record.runtime.model_copy(update={"version": trial.version})
            record = record.model_copy(update={"runtime": runtime})
        record_path(packed).write_bytes(record.to_json())
    return Made(request.out, record, trial)


# ---------------------------------------------------------------- checks


def _problems(request: Request) -> list[GemquantError]:
    problems: list[GemquantError] = []
    weights = request.weights
    if weights.parts > 1:
        problems.append(
            UnsupportedError(
                f"{weights.path} is one of {weights.parts} parts; a llamafile holds one file.",
                hint="Merge them first: llama-gguf-split --merge FIRST-PART OUT.gguf",
            )
        )
    own = [e.name for e in request.runtime.entries if e.name.lower().endswith(SUFFIX)]
    if own:
        problems.append(
            UnsupportedError(
                f"the runtime {request.runtime.origin} holds weights already: {', '.join(own)}.",
                hint="Give the bare runtime: github.com/mozilla-ai/llamafile/releases",
            )
        )
    return problems


def _output_problems(
    request: Request, *, force: bool, copied: bool, needed_bytes: int
) -> list[GemquantError]:
    ours = [request.out, record_path(request.out)]
    problems: list[GemquantError] = []
    replaceable: list[Path] = []
    if force and request.out.exists():
        try:
            read_record(request.out)
            replaceable = ours
        except ArtifactError as error:
            problems.append(
                OutputError(
                    f"{request.out}: --force replaces llamafiles only: {error.message}",
                    hint="Choose another place with -o.",
                )
            )
            return problems
    files = [request.weights_place, *ours] if copied else ours
    return problems + file_problems(files, replaceable=replaceable, needed_bytes=needed_bytes)


def _stands_already(request: Request, digests: Digests) -> bool:
    place = request.weights_place
    return (
        place.is_file()
        and place.stat().st_size == digests.bytes
        and (place.samefile(request.weights.path) or sha256_of(place) == digests.sha256)
    )


# ---------------------------------------------------------------- writing


def _member(name: str, content: bytes) -> Member:
    return Member(Entry(name, len(content), zlib.crc32(content)), content)


def _record(planned: Plan, packed: Path) -> LlamafileRecord:
    request, weights = planned.request, planned.request.weights
    ours = {member.entry.name for member in planned.members}
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
            bytes=planned.digests.bytes,
            sha256=planned.digests.sha256,
            offset=planned.offset,
            architecture=str(weights.metadata.get("general.architecture", "unknown")),
            license=license_ if isinstance(license_, str) else None,
        ),
        arguments=request.arguments,
        libraries={"gemquant": __version__},
    )
