"""What was given as MODEL where it is none, and the command to type instead."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from pathlib import Path

from gemquant.core.untrusted import hub_repository, open_regular, user_path
from gemquant.errors import CheckpointError, GemquantError, command_with, listed
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.checkpoint.sample import sample_named
from gemquant.models.mmproj import is_mmproj

ADAPTER = "adapter_config.json"
SAMPLE = "sample:"
_READ = {".json", ".jinja", ".model", ".safetensors"}

_REFERENCE = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?"
)

_TRAINED = re.compile(r"checkpoint-(\d{1,9})")
_PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+).*")
_HUB_FILE = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?::|/(?=.*\.gguf$))([\w.-]+)", re.IGNORECASE)
_OLLAMAS = re.compile(r"[\w.-]+:[\w.-]+")
_MOST_LISTED, _LONGEST = 1000, 300


def parse_hub_reference(ref: str) -> tuple[str, str | None] | None:
    """Split ``OWNER/NAME[@REVISION]``; None for any other text.

    >>> parse_hub_reference("google/gemma-2-2b@main")
    ('google/gemma-2-2b', 'main')
    >>> parse_hub_reference("./models/gemma")
    """
    match = _REFERENCE.fullmatch(ref)
    if match is None or ".." in ref:
        return None
    return match["id"], match["revision"]


def check_place(ref: str) -> None:
    """Raise what a MODEL's name or path alone shows of one that is none; needs no torch."""
    if ref.startswith(SAMPLE):
        sample_named(ref.removeprefix(SAMPLE))
        return
    try:
        _check_path(ref, user_path(ref))
    except OSError as error:
        raise CheckpointError(f"{ref[:_LONGEST]}: cannot be read: {error.strerror}.") from None


def check_adapter(ref: str) -> None:
    """Raise for an adapter, with =WEIGHT or without, that is neither a path nor a Hub id."""
    name = ref.rpartition("=")[0] or ref
    there = any(os.path.lexists(user_path(each)) for each in (ref, name))
    if not there and parse_hub_reference(name) is None:
        raise CheckpointError(
            f"--lora {name[:_LONGEST]}: no such folder.",
            hint="Give an adapter's folder or Hub id, as peft or mlx-lm saves it.",
        )


def _check_path(ref: str, path: Path) -> None:
    if path.is_dir():
        check_folder(path)
    elif path.is_file():
        if path.suffix.lower() != ".gguf" and not _begins_as_gguf(path):
            raise CheckpointError(
                f"{ref} is a file, and not a .gguf.", hint=f"Open its folder: {path.parent}"
            )
    elif path.is_symlink() or path.exists():
        raise CheckpointError(
            f"{ref}: not a regular file or folder"
            + (", but a link to nothing that can be opened." if path.is_symlink() else ".")
        )
    else:
        hub_reference(ref)


def hub_reference(ref: str) -> tuple[str, str | None]:
    """The Hub's id and revision that a name stands for which is no path."""
    reference = parse_hub_reference(ref)
    if reference is None or ref.lower().endswith(".gguf"):
        raise CheckpointError(
            f"{ref[:_LONGEST]}: no such file or folder.",
            hint=meant(ref)
            or "Give a folder, a FILE.gguf, a Hub id such as google/gemma-2-2b, or "
            "sample:gemma-3-270m.",
        )
    return reference


def check_folder(folder: Path) -> None:
    """Raise what a folder is that is no model's."""
    broken = sorted(
        path.name for path in folder.iterdir() if path.suffix in _READ and not path.exists()
    )
    if broken:
        raise CheckpointError(
            f"{folder}: {listed(broken, 4)}: linked to nothing.",
            hint="Download the files again.",
        )
    configured = (folder / "config.json").exists()
    if (other := not_a_model(folder, configured=configured)) is not None:
        raise other
    if configured:
        return
    hint = "Give a folder that holds config.json, model.safetensors and tokenizer.json."
    if ggufs := sorted(path for path in folder.glob("*.gguf") if not is_mmproj(path.name)):
        hint = f"Open the file itself: {ggufs[0]}"
    elif repository := hub_repository(folder):
        get = f"hf download {repository} --include '*.gguf' --local-dir ."
        hint = f"If it holds GGUF files, download one: {get}"
    raise CheckpointError(
        f"{folder}: config.json is missing; this is not a model folder.", hint=hint
    )


def not_a_model(folder: Path, *, configured: bool) -> GemquantError | None:
    """Say what a folder is that is no model; configured: it has a config.json and weights."""
    checks = (_artifact,) if configured else (_artifact, _adapter, _training, _holder)
    return next((error for check in checks if (error := check(folder)) is not None), None)


def _begins_as_gguf(path: Path) -> bool:
    """Whether a file of any name is a GGUF: ollama's are called sha256-…"""
    with open_regular(path) as file:
        return file.read(4) == b"GGUF"


def not_an_adapter(path: Path) -> GemquantError | None:
    """Say what was given as an adapter where it is none."""
    if path.is_file():
        hint = "llama.cpp applies such a file itself; to merge it, give the folder that it is from."
        if path.suffix.lower() != ".gguf":
            hint = f"Give its folder: --lora {shlex.quote(str(path.parent))}"
        return CheckpointError(f"{path} is a file, and an adapter is a folder.", hint=hint)
    steps = [name for name in _subfolders(path) if (path / name / ADAPTER).exists()]
    if steps:
        last = max(steps, key=lambda name: (len(name), name))  # checkpoint-1000 after -500
        return CheckpointError(
            f"{path} is no adapter, but holds {listed(steps, 4)}.",
            hint=f"Give one: --lora {shlex.quote(str(path / last))}",
        )
    if (path / "config.json").exists():
        named = hub_repository(path) or str(path)
        return CheckpointError(
            f"{named} is a model, not an adapter.", hint=command_with(shlex.quote(named))
        )
    return None


def _artifact(folder: Path) -> GemquantError | None:
    source = _source(folder)
    if source is None:
        return None
    return CheckpointError(
        f"{folder} is an artifact, which gemquant made from {source}.",
        hint=f"Start from the original: {command_with(shlex.quote(source))}",
    )


def _adapter(folder: Path) -> GemquantError | None:
    if not (folder / ADAPTER).exists():
        return None
    base, named = _base(folder), hub_repository(folder) or str(folder)
    return CheckpointError(
        f"{named} is an adapter of {base}, not a model.",
        hint=command_with(f"{shlex.quote(base)} --lora {shlex.quote(named)}"),
    )


def _training(folder: Path) -> GemquantError | None:
    steps = {
        int(match[1]): name
        for name in _subfolders(folder)
        if (match := _TRAINED.fullmatch(name)) is not None
    }
    if not steps:
        return None
    last = folder / steps[max(steps)]
    model = shlex.quote(str(last))
    if (last / ADAPTER).exists() and not (last / "config.json").exists():
        model = f"{shlex.quote(_base(last))} --lora {model}"
    return CheckpointError(
        f"{folder} holds checkpoints of a training: "
        f"{listed([steps[step] for step in sorted(steps)], 4)}.",
        hint=f"Take one: {command_with(model)}",
    )


def _holder(folder: Path) -> GemquantError | None:
    """The error for a folder of models, of artifacts, or of the Hub's cache."""
    inside = [folder / name for name in _subfolders(folder)]
    inside += [folder / "snapshots" / name for name in _subfolders(folder / "snapshots")]
    sources = {path: source for path in inside if (source := _source(path)) is not None}
    if sources:
        names, source = [path.name for path in sources], next(iter(sources.values()))
        return CheckpointError(
            f"{folder} holds {len(sources)} artifacts, made from {source}: {listed(names, 4)}.",
            hint=f"Start from the original: {command_with(shlex.quote(source))}",
        )
    models = [path for path in inside if (path / "config.json").exists()]
    if not models:
        return None
    return CheckpointError(
        f"{folder} is no model, but holds {listed([path.name for path in models], 4)}.",
        hint=f"Take one: {command_with(shlex.quote(str(models[0])))}",
    )


def _source(folder: Path) -> str | None:
    """The checkpoint that a quantized artifact was made from; None for other folders."""
    try:
        manifest = read_json_object(folder / "manifest.json")
        source, revision = manifest["source"]["ref"], manifest["source"].get("revision")
        quantized = manifest["quantization"]["schemes"] or not (folder / "config.json").exists()
    except (GemquantError, OSError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(source, str) or not quantized:
        return None
    return (f"{source}@{revision}" if revision and "@" not in source else source)[:_LONGEST]


def _base(adapter: Path) -> str:
    try:
        config = read_json_object(adapter / ADAPTER)
    except GemquantError:
        return "BASE"
    named = config.get("base_model_name_or_path") or config.get("model")
    return named[:_LONGEST] if isinstance(named, str) and named else "BASE"


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_LISTED)) if entry.is_dir()]  # noqa: B905
    except OSError:
        return []
    return sorted(names)


# ---------------------------------------------------------------- names that lead nowhere


def meant(ref: str) -> str | None:
    """What was probably meant by a name that is neither a file nor a folder, as a hint."""
    if len(ref) > _LONGEST:
        return None
    if page := _PAGE.fullmatch(ref):
        return f"Give its name on the Hub: {command_with(page[1])}"
    if file := _HUB_FILE.fullmatch(ref):
        return f"Download it first: hf download {file[1]} --include '*{file[2]}*' --local-dir ."
    if _OLLAMAS.fullmatch(ref):
        return f"If it is ollama's, give its file: ollama show --modelfile {ref} names it."
    close = _close_path(os.path.expanduser(ref.partition("@")[0]))  # noqa: PTH111
    if close is None:
        return None
    return f"Did you mean {close}? Then type: {command_with(shlex.quote(close))}"


def _close_path(path: str) -> str | None:
    """An existing folder or GGUF whose name is much like that of ``path``, part by part."""
    parent, name = os.path.split(path.rstrip("/"))
    if parent and not os.path.isdir(parent):  # noqa: PTH112 - False for any text
        close = _close_path(parent)
        if close is None or not os.path.isdir(close):  # noqa: PTH112
            return None
        parent = close
    folder = Path(parent or ".")
    known = _subfolders(folder)
    known += sorted(path.name for path in folder.glob("*.gguf"))[:_MOST_LISTED]
    found = [name] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return os.path.join(parent, found[0]) if found else None  # noqa: PTH118 - as it was typed
