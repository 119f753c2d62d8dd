"""From what the user named to an engine: which runtime, which template, which preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemquant.core.artifact import MANIFEST_FILE, Manifest, read_manifest
from gemquant.core.resources import free_memory_bytes
from gemquant.errors import CalibrationError, UsageError
from gemquant.formats.gguf.config import gguf_config
from gemquant.formats.gguf.find import GgufFile, find_gguf, ggufs_of
from gemquant.models.chat import choose_template, render
from gemquant.models.chat_templates import SYSTEM_IN_USER
from gemquant.runtimes.chat.engine import Engine, Message
from gemquant.runtimes.chat.presets import BITS, Choice, Preset, cache_bytes, choose_preset

if TYPE_CHECKING:
    from gemquant.runtimes.chat.llamacpp import LlamaSettings

_SMALLEST_CONTEXT = 16


@dataclass(frozen=True)
class Wanted:
    """What was asked for. preset: a name or ``auto``; context, device: None for the preset's."""

    model: str
    preset: str
    threads: int
    chat_template: str | None = None
    context: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class Opened:
    """An engine, and what was decided for it."""

    engine: Engine
    choice: Choice


def open_engine(wanted: Wanted, opening: list[Message]) -> Opened:
    """Load a GGUF in llama.cpp, anything else in transformers.

    opening: messages that the template must accept, such as a system message and a question.
    Raises a GemquantError before anything is loaded where that can be known.
    """
    manifest = _manifest(wanted.model)
    if manifest is None or ggufs_of(manifest):
        return _open_gguf(wanted, find_gguf(wanted.model), opening)
    return _open_folder(wanted, Path(wanted.model).expanduser(), manifest, opening)


def template_of(wanted: str | None, own: str | None, opening: list[Message]) -> str:
    """Choose the template, and try it. One that accepts a system message, where there is none."""
    template = choose_template(wanted, own or SYSTEM_IN_USER)
    try:
        render(template, opening, add_generation_prompt=True)
    except CalibrationError as refusal:
        raise UsageError(refusal.message, hint=refusal.hint) from None
    return template


def context_of(wanted: int | None, preset: Preset, longest: int) -> int:
    """Tokens of a conversation: what was asked for, else the preset's, never more than trained."""
    if wanted is None:
        return min(preset.context, longest)
    if not _SMALLEST_CONTEXT <= wanted <= longest:
        raise UsageError(
            f"--context {wanted}: must be from {_SMALLEST_CONTEXT} to {longest}, which the model "
            "was trained for."
        )
    return wanted


def config_of(gguf: GgufFile) -> Mapping[str, Any]:
    """The text model's configuration, from a GGUF's header."""
    vocabulary = len(gguf.metadata.get("tokenizer.ggml.tokens", ()))
    return gguf_config(gguf.metadata, vocab_size=vocabulary, tied=True)


def choice_of(
    name: str,
    config: Mapping[str, Any],
    *,
    weights_bytes: int,
    free_bytes: int | None,
    bits: float,
    conversations: int = 1,
) -> Choice:
    """Choose a preset. bits: of a cached number; 0 for those of the preset in llama.cpp."""
    longest = config["max_position_embeddings"]

    def cached(preset: Preset) -> int:
        return conversations * cache_bytes(
            config,
            context=min(preset.context, longest),
            batch=preset.batch,
            bits=bits or BITS[preset.cache],
        )

    return choose_preset(
        name, weights_bytes=weights_bytes, cache_bytes=cached, free_bytes=free_bytes
    )


def _manifest(ref: str) -> Manifest | None:
    folder = Path(ref).expanduser()
    return read_manifest(folder) if (folder / MANIFEST_FILE).is_file() else None


def _open_gguf(wanted: Wanted, gguf: GgufFile, opening: list[Message]) -> Opened:
    from gemquant.runtimes.chat.llamacpp import LlamaCppEngine

    settings, choice = llama_settings(wanted, gguf, opening)
    return Opened(LlamaCppEngine(settings), choice)


def llama_settings(
    wanted: Wanted, gguf: GgufFile, opening: list[Message], *, parallel: int = 1
) -> tuple[LlamaSettings, Choice]:
    """Decide how llama.cpp is to hold a GGUF for so many conversations at once."""
    from gemquant.runtimes.chat.llamacpp import LlamaSettings, free_gpu_bytes, require_llamacpp

    require_llamacpp()
    own = gguf.metadata.get("tokenizer.chat_template")
    template = template_of(wanted.chat_template, own if isinstance(own, str) else None, opening)
    config = config_of(gguf)
    on_gpu = None if wanted.device == "cpu" else free_gpu_bytes()
    if wanted.device not in {None, "cpu"} and on_gpu is None:
        raise UsageError(
            f"--device {wanted.device}: this build of llama.cpp computes on the processor only.",
            hint="Install one for GPUs: https://github.com/xorbitsai/xllamacpp#installation",
        )
    choice = choice_of(
        wanted.preset,
        config,
        weights_bytes=gguf.path.stat().st_size,
        free_bytes=free_memory_bytes() if on_gpu is None else on_gpu,
        bits=0,
        conversations=parallel,
    )
    settings = LlamaSettings(
        path=gguf.path,
        name=gguf.path.stem,
        template=template,
        context=context_of(wanted.context, choice.preset, config["max_position_embeddings"]),
        batch=choice.preset.batch,
        cache=choice.preset.cache,
        threads=wanted.threads,
        gpu=on_gpu is not None,
        parallel=parallel,
    )
    return settings, choice


def _open_folder(
    wanted: Wanted, folder: Path, manifest: Manifest, opening: list[Message]
) -> Opened:
    from gemquant.formats.checkpoint.folder import read_raw_config
    from gemquant.formats.checkpoint.tokenizer_files import read_tokenizer_files
    from gemquant.models.config import text_config
    from gemquant.runtimes.chat.transformers import (
        Spoken,
        TransformersEngine,
        best_device,
        ends_of,
        free_bytes_on,
        require_device,
        require_loadable,
    )

    require_loadable(folder, manifest.container)
    files = read_tokenizer_files(folder)
    template = template_of(wanted.chat_template, files.chat_template, opening)
    raw = read_raw_config(folder)
    config = text_config({key: raw[key] for key in raw if not key.startswith("quantization")})
    device = wanted.device or best_device()
    require_device(device)
    weights = sum(
        record.bytes for name, record in manifest.files.items() if name.endswith(".safetensors")
    )
    choice = choice_of(
        wanted.preset, config, weights_bytes=weights, free_bytes=free_bytes_on(device), bits=16
    )
    bos = files.tokenizer.id_to_token(config["bos_token_id"]) or ""
    engine = TransformersEngine(
        folder,
        manifest.container,
        Spoken(files.tokenizer, template, bos, ends_of(config, files.tokenizer)),
        choice.preset,
        context=context_of(wanted.context, choice.preset, config["max_position_embeddings"]),
        device=device,
        threads=wanted.threads,
    )
    return Opened(engine, choice)
