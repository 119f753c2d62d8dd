"""Plans and writes a llamafile: a runtime, default arguments and weights in one executable.

    runtime, byte for byte      an executable, often with its own zip directory at its end
    .args                       a zip entry: default arguments
    NOTICE                      a zip entry: Gemma's notice, if the weights are Gemma's
    zeros                       up to the alignment
    NAME.gguf                   a zip entry, stored; its data begins at a multiple of 65536
    mmproj-NAME.gguf            likewise, the towers of a multimodal model
    zip directory               the runtime's entries, then ours

The runtime finds the directory at the end of its own file and maps the weights from there.

Source: docs/creating_llamafiles.md and llamafile/llamafile.c in
https://github.com/mozilla-ai/llamafile
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    TowersRecord,
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
from gemquant.models.architecture import gguf_architectures

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

    external: leave the weights in a separate file. towers: the file of a multimodal model's.
    """

    weights: GgufFile
    runtime: Runtime
    out: Path
    mode: Mode | None = None
    extra: Sequence[str] = ()
    external: bool = False
    towers: Path | None = None

    @property
    def sources(self) -> dict[str, Path]:
        """The weights, then the towers, by their names in the zip or next to the executable."""
        paths = [self.weights.path, *([] if self.towers is None else [self.towers])]
        return {
            "".join("-" if sign in _FORBIDDEN_IN_NAMES else sign for sign in path.name): path
            for path in paths
        }

    @property
    def weights_name(self) -> str:
        """Name of the weights, in the zip or next to the executable."""
        return next(iter(self.sources))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Default arguments of the llamafile."""
        flags = zip(("-m", "--mmproj"), self.sources, strict=False)
        where = "" if self.external else "/zip/"
        named = [part for flag, name in flags for part in (flag, where + name)]
        mode = () if self.mode is None else (f"--{self.mode}",)
        return (*named, *mode, *self.extra)


@dataclass(frozen=True)
class LlamafilePlan:
    """The layout of a requested file; nothing is written yet.

    digests: of the weights and the towers, by name. offsets: of their data, None if external.
    copied: external ones that must be copied next to the executable.
    """

    request: LlamafileRequest
    members: Sequence[Member]
    layout: Layout
    digests: Mapping[str, Digests]
    offsets: Mapping[str, int | None]
    copied: Sequence[str]

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
    digests = {
        name: digests_of(path, task=f"hashing {name}", progress=progress)
        for name, path in request.sources.items()
    }
    weights = digests[request.weights_name]
    if request.weights.sha256 not in {None, weights.sha256}:
        raise ArtifactError(
            f"{request.weights.path} is not the file that its manifest describes: sha256 "
            f"{weights.sha256}, not {request.weights.sha256}."
        )
    members = [_member(ARGUMENTS_ENTRY, arguments_file(request.arguments))]
    if notice := request.weights.notice:
        members.append(_member(NOTICE_ENTRY, notice.encode()))
    offsets: dict[str, int | None] = dict.fromkeys(request.sources)
    if not request.external:
        for name, path in request.sources.items():
            entry = Entry(name, digests[name].bytes, digests[name].crc32)
            members.append(Member(entry, path, ALIGNMENT))
    layout = lay_out(request.runtime.bytes, request.runtime.entries, members)
    if not request.external:
        places = layout.places[-len(request.sources) :]
        offsets |= {n: p.data_offset for n, p in zip(request.sources, places, strict=True)}
    copied = [
        name
        for name, path in request.sources.items()
        if request.external and not _is_in_place(request.out.with_name(name), path, digests[name])
    ]
    needed = layout.size + sum(digests[name].bytes for name in copied)
    refuse(_output_problems(request, force=force, copied=copied, needed_bytes=needed))
    return LlamafilePlan(request, members, layout, digests, offsets, copied)


def build_llamafile(plan: LlamafilePlan, *, run: bool, progress: Progress) -> Llamafile:
    """Write the file, read it back, run it if ``run``, then move it to its path."""
    request = plan.request
    files = [request.out.with_name(name) for name in plan.copied]
    files += [record_path(request.out), request.out]
    with staged_files(files) as scratch:
        packed = scratch / request.out.name
        progress.note(f"writing {request.out}")
        write(packed, request.runtime.path, plan.members, plan.layout)
        for name in plan.copied:
            shutil.copyfile(request.sources[name], scratch / name)
        record = _record(plan, packed)
        folders = [scratch, request.out.parent]
        read_back(packed, record, weights_folders=folders, progress=progress)
        trial = ask_version(packed) if run else None
        if trial is not None:
            runtime = record.runtime.model_copy(update={"version": trial.version})
            record = record.model_copy(update={"runtime": runtime})
        record_path(packed).write_bytes(record.to_json())
    return Llamafile(request.out, record, trial)


# ---------------------------------------------------------------- checks


def _problems(request: LlamafileRequest) -> Iterator[GemquantError]:
    weights = request.weights
    architecture = gguf_architectures().get(str(weights.metadata.get("general.architecture")))
    if architecture is not None and architecture.embeds:
        yield UnsupportedError(
            f"{weights.path} is an {architecture.name}: a llamafile that makes embeddings was not "
            "tried.",
            hint=f"llama-server -m {weights.path} --embedding",
        )
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
    request: LlamafileRequest, *, force: bool, copied: Sequence[str], needed_bytes: int
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
    files = [*(request.out.with_name(name) for name in copied), *ours]
    return file_problems(files, replaceable=replaceable, needed_bytes=needed_bytes)


def _is_in_place(place: Path, source: Path, digests: Digests) -> bool:
    return (
        place.is_file()
        and place.stat().st_size == digests.bytes
        and (place.samefile(source) or sha256_of(place) == digests.sha256)
    )


# ---------------------------------------------------------------- writing


def _member(name: str, content: bytes) -> Member:
    return Member(Entry(name, len(content), zlib.crc32(content)), content)


def _record(plan: LlamafilePlan, packed: Path) -> LlamafileRecord:
    request, weights = plan.request, plan.request.weights

    def stored(name: str) -> dict[str, Any]:
        digests = plan.digests[name]
        facts = {"bytes": digests.bytes, "sha256": digests.sha256, "offset": plan.offsets[name]}
        return {"name": name, **facts}

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
            **stored(request.weights_name),
            architecture=str(weights.metadata.get("general.architecture", "unknown")),
            license=license_ if isinstance(license_, str) else None,
        ),
        towers=None if request.towers is None else TowersRecord(**stored([*request.sources][1])),
        arguments=request.arguments,
        libraries={"gemquant": __version__},
    )
