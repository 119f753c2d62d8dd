"""Loads the model of a conversation: which runtime, which template, which preset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemquant.core.artifact import MANIFEST_FILE, Manifest, read_manifest
from gemquant.core.protocols import Progress
from gemquant.core.resources import free_memory_bytes, require_device
from gemquant.core.untrusted import user_path
from gemquant.errors import CalibrationError, RuntimeMissingError, UnsupportedError, UsageError
from gemquant.formats.gguf.find import GgufFile, find_gguf, find_mmproj, ggufs_of
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import (
    GEMMA_TOKENS,
    ChatTemplate,
    Message,
    SpecialTokens,
    check_template,
    choose_template,
    render,
)
from gemquant.runtimes.chat.presets import BITS, Choice, Preset, choose_preset, kv_cache_bytes
from gemquant.runtimes.runtime import LoadOptions

if TYPE_CHECKING:
    from gemquant.runtimes.chat.media import Sense
    from gemquant.runtimes.chat.server import ServerSettings
    from gemquant.runtimes.chat.session import ChatModel

_SMALLEST_CONTEXT = 16
IMAGE_BATCH = 512


@dataclass(frozen=True)
class ChatRequest:
    """What the user asked for. preset: a name or ``auto``; context, device, mmproj: None for
    defaults. senses: what messages will hold besides text.
    """

    model: str
    preset: str
    threads: int
    chat_template: str | None = None
    context: int | None = None
    device: str | None = None
    mmproj: str | None = None
    senses: Collection[Sense] = ()

    def require(self, senses: Collection[Sense]) -> None:
        """Raise UsageError where messages would hold what the model cannot take."""
        if lacking := sorted(set(self.senses) - set(senses)):
            raise UsageError(
                f"--image: {self.model} takes no {lacking[0]} here.",
                hint="Chat with a GGUF of a multimodal Gemma and its mmproj file: gemquant gguf "
                "MODEL makes both, and --mmproj FILE names one.",
            )

    def template(
        self,
        own: object,
        opening: Sequence[Message],
        config: Mapping[str, Any],
        special_tokens: SpecialTokens = GEMMA_TOKENS,
        progress: Progress | None = None,
    ) -> ChatTemplate:
        """Choose the template, and try it; without any, one that accepts a system message.

        own: the model's template, where it is a text. config: the model's.
        """
        chat = architecture_of(config).chat
        if progress and not own and self.chat_template is None:
            progress.note(
                f"caution: {self.model} has no chat template: a base model, which was trained to "
                "continue text and not to chat, will ramble. For a conversation take an -it model; "
                "gemquant serve continues text at /v1/completions."
            )
        own = own if isinstance(own, str) and own else chat.template(chat.chat)
        template = ChatTemplate(choose_template(self.chat_template, own, chat), special_tokens)
        try:
            render(template, opening, add_generation_prompt=True)
        except CalibrationError as refusal:
            raise UsageError(refusal.message, hint=refusal.hint) from None
        return template

    def tokens(self, preset: Preset, longest: int) -> int:
        """Tokens of a conversation: as requested, else the preset's; at most ``longest``."""
        if self.context is None:
            return min(preset.context, longest)
        if not _SMALLEST_CONTEXT <= self.context <= longest:
            raise UsageError(
                f"--context {self.context}: must be from {_SMALLEST_CONTEXT} to {longest}, which "
                "the model was trained for."
            )
        return self.context


def load_chat_model(
    request: ChatRequest, opening: Sequence[Message], progress: Progress | None = None
) -> tuple[ChatModel, Choice]:
    """Load a GGUF in llama.cpp, any other artifact in transformers.

    opening: messages that the template must accept, such as a system message and a question.
    Raises a GemquantError before anything is loaded if that can be known.
    """
    folder = user_path(request.model)
    manifest = read_manifest(folder) if (folder / MANIFEST_FILE).is_file() else None
    if manifest is not None and not ggufs_of(manifest):
        return _load_folder(request, folder, manifest, opening, progress)
    from gemquant.runtimes.chat.server import LlamaCppChat

    gguf = find_gguf(request.model)
    settings, choice = server_settings(request, gguf, opening, progress=progress)
    return LlamaCppChat(settings), choice


def server_settings(
    request: ChatRequest,
    gguf: GgufFile,
    opening: Sequence[Message],
    *,
    parallel: int = 1,
    progress: Progress | None = None,
) -> tuple[ServerSettings, Choice]:
    """Decide how llama.cpp holds a GGUF for ``parallel`` conversations at once."""
    from gemquant.formats.gguf.tokenizer import unmarked_turns
    from gemquant.runtimes.chat.server import ServerSettings, free_gpu_bytes, require_llamacpp
    from gemquant.runtimes.text import GGUF_TEMPLATE, config_of_gguf, require_text_gguf

    require_text_gguf(request.model, gguf.metadata)
    require_llamacpp()
    config = config_of_gguf(gguf.metadata)
    template = request.template(
        gguf.metadata.get(GGUF_TEMPLATE), opening, config, progress=progress
    )
    if progress and (note := unmarked_turns(gguf.metadata)) is not None:
        progress.note(f"caution: {request.model}: {note}")
    check_template(template)  # llama.cpp renders without limits
    gpu_bytes = None if request.device == "cpu" else free_gpu_bytes()
    if request.device not in {None, "cpu"} and gpu_bytes is None:
        raise UsageError(
            f"--device {request.device}: this build of llama.cpp computes on the processor only.",
            hint="Install one for GPUs: https://github.com/xorbitsai/xllamacpp#installation",
        )
    mmproj = find_mmproj(gguf, request.mmproj)
    request.require(mmproj.senses if mmproj else ())
    choice = choose_preset(
        request.preset,
        weights_bytes=gguf.path.stat().st_size + (mmproj.path.stat().st_size if mmproj else 0),
        cache_bytes=partial(_cache_bytes, config, conversations=parallel),
        free_bytes=free_memory_bytes() if gpu_bytes is None else gpu_bytes,
    )
    settings = ServerSettings(
        path=gguf.path,
        name=gguf.path.stem,
        template=template.source,
        context=request.tokens(choice.preset, config["max_position_embeddings"]),
        # llama.cpp reads an image at once: 256 tokens in Gemma 3, 280 in Gemma 4.
        batch=max(choice.preset.batch, IMAGE_BATCH if mmproj else 0),
        cache=choice.preset.cache,
        threads=request.threads,
        gpu=gpu_bytes is not None,
        parallel=parallel,
        mmproj=mmproj.path if mmproj else None,
        senses=mmproj.senses if mmproj else (),
    )
    return settings, choice


def _load_folder(
    request: ChatRequest,
    folder: Path,
    manifest: Manifest,
    opening: Sequence[Message],
    progress: Progress | None,
) -> tuple[ChatModel, Choice]:
    import torch

    from gemquant.formats.checkpoint.files import read_json_object
    from gemquant.models.config import text_config
    from gemquant.runtimes.chat.session import TransformersChat
    from gemquant.runtimes.text import TextInterface, require_text
    from gemquant.runtimes.transformers import Transformers

    request.require(())
    if request.mmproj not in {None, "none"}:
        raise UsageError(f"--mmproj {request.mmproj}: {folder} is no GGUF.")
    require_text(str(folder), folder, manifest.container)
    reason = Transformers.unavailable(manifest.container)
    if reason is not None and manifest.container == "mlx":
        raise UnsupportedError(
            f"{folder}: {reason}.", hint=f"On a Mac: mlx_lm.chat --model {folder}"
        )
    if reason is not None:
        raise RuntimeMissingError(
            f"{folder}: {reason}.", hint=f"gemquant show {folder} lists what loads it."
        )
    text = TextInterface.of_artifact(folder, manifest.container)
    raw = read_json_object(folder / "config.json")
    config = text_config({key: raw[key] for key in raw if not key.startswith("quantization")})
    template = request.template(text.template, opening, config, text.special_tokens, progress)
    text = replace(text, template=template.source)
    device = request.device or _best_device()
    require_device(device)
    on_cuda = device.startswith("cuda")
    choice = choose_preset(
        request.preset,
        weights_bytes=sum(
            record.bytes for name, record in manifest.files.items() if name.endswith(".safetensors")
        ),
        cache_bytes=partial(_cache_bytes, config, bits=16),
        free_bytes=torch.cuda.mem_get_info(device)[0] if on_cuda else free_memory_bytes(),
    )
    context = request.tokens(choice.preset, text.max_tokens)
    options = LoadOptions(device, choice.preset.dtype, request.threads)
    runtime = Transformers.load(folder, manifest.container, options)
    compiled = choice.preset.compiled and on_cuda
    return TransformersChat(runtime, text, context=context, compiled=compiled), choice


def _cache_bytes(
    config: Mapping[str, Any], preset: Preset, *, bits: float = 0, conversations: int = 1
) -> int:
    """Bytes of all conversations' caches; bits: per value, 0 for the preset's in llama.cpp."""
    return conversations * kv_cache_bytes(
        config,
        tokens=min(preset.context, config["max_position_embeddings"]),
        batch=preset.batch,
        bits=bits or BITS[preset.cache],
    )


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
