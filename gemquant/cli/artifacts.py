"""The artifacts that a user names: by folder, by a file inside, or by a folder of artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gemquant.errors import ArtifactError, GemquantError, ProblemCollector, refuse

if TYPE_CHECKING:
    from gemquant.core.artifact import Artifact

_PARTS_OF_AN_ID = 2


def require_there(paths: Sequence[Path]) -> None:
    """Raise if all paths lead to nothing, before what opens artifacts is imported.

    Not for what may be an id on the Hub.
    """
    if all(map(_leads_to_nothing, paths)):
        refuse([ArtifactError(f"{path}: no such file or folder.") for path in paths])


def _leads_to_nothing(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return len(path.parts) != _PARTS_OF_AN_ID or path.parts[0] in {".", "..", "~", "/"}
    except OSError:  # such as a name that is too long: whoever opens it says so
        pass
    return False


def artifact_folders(paths: Sequence[Path]) -> list[Path]:
    """Folders of the artifacts; all problems at once where a path leads to none."""
    problems = ProblemCollector()
    found = [problems.attempt(partial(folders_at, path)) for path in paths]
    problems.refuse()
    return list(dict.fromkeys(folder for each in found for folder in each.value))


def folders_at(path: Path) -> list[Path]:
    """The artifact at a path, the one that a file belongs to, or all in a folder.

    ArtifactError that says what is there instead.
    """
    from gemquant.core.artifact import MANIFEST_FILE

    if (path / MANIFEST_FILE).exists():
        return [path]
    if path.is_file() and (path.parent / MANIFEST_FILE).is_file():
        return [path.parent]
    inside = sorted(each.parent for each in path.glob(f"*/{MANIFEST_FILE}"))
    if inside:
        return inside
    raise _no_artifact(path)


SET_FILES = (
    *("manifests/*.json", "*.gguf", "NOTICE", "README.md", "*.svg"),
    *("manifest.json", "*.safetensors", "*.json", "*.jinja", "tokenizer.model"),
)
"""Files of artifacts in a repository."""


def downloaded(path: Path, files: Sequence[str] = SET_FILES) -> Path:
    """The path itself, or the folder of a repository of artifacts on the Hub that it names."""
    from gemquant.formats.checkpoint.recognition import parse_hub_reference

    reference = None if path.exists() else parse_hub_reference(str(path))
    if reference is None or path.suffix == ".gguf":
        return path
    from gemquant.formats.checkpoint.hub import download

    return download(*reference, files=tuple(files), nested=True)


def is_set(path: Path) -> bool:
    """Whether a folder is a repository of several artifacts, with a manifest of each."""
    return (path / "manifests").is_dir()


def missing(names: Iterable[str]) -> list[GemquantError]:
    """The names that stand for nothing that is there, before torch is loaded to open them."""
    return [
        ArtifactError(
            f"{name}: neither a folder nor a file.",
            hint="Name an artifact, a checkpoint's folder, or a .gguf file.",
        )
        for name in names
        if not name.startswith("sample:") and not Path(name).exists()
    ]


def opened(paths: Sequence[Path]) -> list[Artifact]:
    """Artifacts by their manifests alone; a set from the Hub has several in one folder."""
    from gemquant.core.artifact import Artifact, read_manifest
    from gemquant.core.artifact.finalize import manifests_in

    found: list[Artifact] = []
    for path in paths:
        if names := manifests_in(path):
            found += [Artifact(path, read_manifest(path, name)) for name in names]
        else:
            found += [Artifact(each, read_manifest(each)) for each in artifact_folders([path])]
    return found


def _no_artifact(path: Path) -> GemquantError:
    """What a path leads to, and what to type."""
    from gemquant.core.artifact import MANIFEST_FILE
    from gemquant.rockchip.board_rkllm import prepared_problems

    if not path.exists():
        return ArtifactError(f"{path}: no such file or folder.")
    for prepared in prepared_problems([path]):
        return prepared
    models = (".gguf", ".safetensors")
    if path.suffix in models or (path / "config.json").is_file() or _holds(path, models):
        return ArtifactError(
            f"{path} is a model, not an artifact: it has no {MANIFEST_FILE}.",
            hint=f"Make one: gemquant awq {path}; what fits a device: gemquant plan {path} "
            "--target cpu",
        )
    if path.is_dir():
        return ArtifactError(
            f"{path} is not an artifact: it has no {MANIFEST_FILE}, nor has a folder in it.",
            hint="Artifacts are the folders that gemquant awq, gguf and the like write.",
        )
    return ArtifactError(f"{path} is not an artifact, nor a file of one.")


def _holds(path: Path, suffixes: Sequence[str]) -> bool:
    return path.is_dir() and any(each.suffix in suffixes for each in path.iterdir())
