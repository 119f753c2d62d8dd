"""From what the user named to the one GGUF that a runtime opens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemquant.core.artifact import MANIFEST_FILE, Manifest, read_manifest
from gemquant.core.artifact.manifest import gguf_files, tower_file
from gemquant.core.untrusted import user_path
from gemquant.errors import CheckpointError, UnsupportedError, UsageError
from gemquant.formats.checkpoint.sample import assembled, sample_named
from gemquant.models.architecture import gguf_architectures
from gemquant.models.licences import GEMMA_TERMS, licence_named
from gemquant.models.mmproj import MMPROJ, is_mmproj

SAMPLE = "sample:"
SUFFIX = ".gguf"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF and its parsed header.

    metadata: the header's, by key. sha256: as the manifest records it, where the file is part of
    an artifact; None where nobody has hashed it.
    """

    path: Path
    metadata: Mapping[str, Any]
    sha256: str | None

    @property
    def notice(self) -> str:
        """What a Gemma's licence asks every copy to carry; empty for other models.

        For a Gemma that is not supported, where its file names the Gemma terms.
        """
        name = str(self.metadata.get("general.architecture", ""))
        known = gguf_architectures().get(name)
        named = self.metadata.get("general.license.name", self.metadata.get("general.license"))
        if known is not None:
            return licence_named(str(named), known.licence).notice
        return (
            GEMMA_TERMS.notice if self.metadata.get("general.license") == GEMMA_TERMS.name else ""
        )

    @property
    def parts(self) -> int:
        """Number of files that the model is split into."""
        return int(self.metadata.get("split.count", 1)) or 1


def find_gguf(ref: str) -> GgufFile:
    """Open a GGUF by its path, by an artifact's folder, or by a sample's name.

    Raises a GemquantError that says which command makes a GGUF, or which of several to name.
    """
    if ref.startswith(SAMPLE):
        sample = sample_named(ref.removeprefix(SAMPLE))
        return open_gguf(assembled(sample), sample.sha256)
    check_place(ref)
    path = user_path(ref)
    if path.is_dir():
        return _of_artifact(path) if (path / MANIFEST_FILE).is_file() else _of_folder(path)
    if path.suffix.lower() != SUFFIX:
        raise CheckpointError(f"{ref}: its name does not end in {SUFFIX}.")
    return open_gguf(path, _recorded(path))


@dataclass(frozen=True)
class MmprojFile:
    """A file of towers. senses: "image", "sound"."""

    path: Path
    senses: Sequence[Literal["image", "sound"]]


def find_mmproj(gguf: GgufFile, chosen: str | None = None) -> MmprojFile | None:
    """The towers that go with a model: a chosen file, or its artifact's; None without any.

    chosen: "none" for no towers. UsageError for a file that does not belong to the model.
    """
    folder = gguf.path.parent
    if chosen is None and (folder / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        chosen = tower_file(manifest) if gguf.path.name in manifest.files else None
        chosen = None if chosen is None else str(folder / chosen)
    if chosen in (None, "none"):
        return None
    path = user_path(str(chosen))
    metadata = _header(path)
    kind = metadata.get("general.type")
    if kind != MMPROJ:
        raise UsageError(f"--mmproj {path}: its general.type is {kind!r}, and must be {MMPROJ!r}.")
    model = gguf.metadata.get(f"{gguf.metadata.get('general.architecture')}.embedding_length")
    widths = [metadata.get(f"clip.{part}.projection_dim", model) for part in ("vision", "audio")]
    if any(width != model for width in widths):
        raise UsageError(
            f"--mmproj {path}: projects to {widths[0]} values, and {gguf.path.name} has {model}.",
            hint="Take the mmproj file of the same model.",
        )
    has = {"image": "clip.has_vision_encoder", "sound": "clip.has_audio_encoder"}
    senses: list[Literal["image", "sound"]] = ["image", "sound"]
    return MmprojFile(path, [sense for sense in senses if metadata.get(has[sense])])


def check_place(ref: str) -> None:
    """Raise if a name stands for nothing that is there; needs no torch."""
    path = user_path(ref)
    if not ref.startswith(SAMPLE) and not path.is_dir() and not path.is_file():
        named = ref.lower().endswith(SUFFIX)
        raise CheckpointError(
            f"{ref}: no such file or folder.",
            hint=None if named else f"Make a GGUF with: gemquant gguf {ref} --type Q4_K_M",
        )


def open_gguf(path: Path, sha256: str | None = None) -> GgufFile:
    """Read a GGUF's header. Raises CheckpointError where it is damaged or holds no model."""
    metadata = _header(path)
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"{path}: holds no model: its general.type is {kind!r}.")
    return GgufFile(path, metadata, sha256)


def _header(path: Path) -> Mapping[str, Any]:
    from gemquant.formats.gguf.header import read_gguf_header  # loads torch
    from gemquant.formats.source_file import SourceFile

    try:
        return read_gguf_header(SourceFile(path)).metadata
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}.") from error


def _of_artifact(folder: Path) -> GgufFile:
    manifest = read_manifest(folder)
    names = ggufs_of(manifest)
    if not names:
        raise UnsupportedError(
            f"{folder}: its container is {manifest.container}, which no GGUF runtime reads.",
            hint=f"Make a GGUF with: gemquant gguf {manifest.source.ref} --type Q4_K_M",
        )
    name = _only(folder, names, "GGUF files")
    return open_gguf(folder / name, manifest.files[name].sha256)


def _of_folder(folder: Path) -> GgufFile:
    """Open the only GGUF of a plain folder; the error for a folder of artifacts lists them."""
    artifacts = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_FILE}"))
    if artifacts:
        return _of_artifact(folder / _only(folder, artifacts, "artifacts"))
    names = _loadable(path.name for path in folder.iterdir() if path.is_file())
    if not names:
        raise UnsupportedError(
            f"{folder}: holds no GGUF, and is no artifact: {MANIFEST_FILE} is not in it.",
            hint=f"Make a GGUF with: gemquant gguf {folder} --type Q4_K_M",
        )
    return open_gguf(folder / _only(folder, names, "GGUF files"))


def _only(folder: Path, names: Sequence[str], what: str) -> str:
    if len(names) > 1:
        raise UsageError(
            f"{folder} holds {len(names)} {what}: {', '.join(names)}.",
            hint=f"Name one: {folder / names[0]}",
        )
    return names[0]


def ggufs_of(manifest: Manifest) -> list[str]:
    """Names of an artifact's GGUF files; of a model in parts, the first alone."""
    return _firsts(gguf_files(manifest))


def _loadable(names: Iterable[str]) -> list[str]:
    ours = (name for name in names if name.lower().endswith(SUFFIX) and not is_mmproj(name))
    return _firsts(sorted(ours))


def _firsts(names: Iterable[str]) -> list[str]:
    return [name for name in names if "-of-" not in name or "-00001-of-" in name]


def _recorded(path: Path) -> str | None:
    """Return the digest that the manifest in the same folder records, if there is one."""
    if not (path.parent / MANIFEST_FILE).is_file():
        return None
    record = read_manifest(path.parent).files.get(path.name)
    return None if record is None else record.sha256
