"""From what the user named to an engine that answers, and the voice it speaks with."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gemquant.core.artifact import MANIFEST_FILE, read_manifest
from gemquant.core.artifact.content import content_digest
from gemquant.errors import ArtifactError, RuntimeMissingError, UsageError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.checkpoint.folder import read_raw_config
from gemquant.formats.checkpoint.tokenizer_files import read_tokenizer_files
from gemquant.formats.gguf.find import open_gguf
from gemquant.measure.bench.subject import Subject
from gemquant.measure.quality.native import RUNNERS
from gemquant.measure.tasks.document import Settings
from gemquant.measure.tasks.engines.engine import Engine
from gemquant.measure.tasks.engines.llamacpp import LlamaCppEngine
from gemquant.measure.tasks.engines.mlx import MlxEngine
from gemquant.measure.tasks.engines.onnx import OnnxEngine
from gemquant.measure.tasks.engines.transformers import TransformersEngine
from gemquant.measure.tasks.voice import Voice
from gemquant.models.skeleton import Skeleton
from gemquant.runtimes.chat.opening import config_of
from gemquant.runtimes.chat.transformers import ends_of
from gemquant.runtimes.llamacpp import LlamaCppRunner
from gemquant.runtimes.mlx import MlxRunner
from gemquant.runtimes.onnx import OnnxRunner
from gemquant.runtimes.transformers import TransformersRunner


def digest(subject: Subject) -> str | None:
    """What an artifact's folder holds, as evaluation documents name it; None for all else."""
    if not (subject.path / MANIFEST_FILE).is_file():
        return None
    return content_digest(read_manifest(subject.path))


def require_runtime(subject: Subject) -> None:
    """RuntimeMissingError where an artifact's runtime cannot run here, with what installs it."""
    kind = RUNNERS.get(subject.container, TransformersRunner)
    reason = kind.unavailable(subject.container)
    if reason is not None:
        raise RuntimeMissingError(
            f"{subject.name} cannot be run in {kind.name}: {reason}.",
            hint="gemquant doctor says what is installed, and how to install the rest.",
        )


def artifact_voice(subject: Subject) -> Voice:
    """How an artifact reads and writes, from its own files."""
    tokenizer, bos = subject.tokenizer()
    if subject.container == "gguf":
        from gemquant.runtimes.llamacpp_model import gguf_file

        header = open_gguf(gguf_file(subject.path))
        own = header.metadata.get("tokenizer.chat_template")
        eos = {"eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id")}
        return _voice(tokenizer, bos, {**config_of(header), **eos}, own)
    template = read_tokenizer_files(subject.path).chat_template
    raw = read_raw_config(subject.path)
    return _voice(tokenizer, bos, raw.get("text_config", raw), template)


def original_voice(checkpoint: Checkpoint) -> Voice:
    """How a checkpoint reads and writes."""
    config = checkpoint.config
    bos = config["bos_token_id"]
    return _voice(checkpoint.tokenizer(), bos, config, checkpoint.chat_template())


def _voice(tokenizer: Any, bos: int, config: Mapping[str, Any], template: object) -> Voice:
    longest = config.get("max_position_embeddings")
    if not isinstance(longest, int):
        raise ArtifactError("the model's configuration has no max_position_embeddings.")
    return Voice(
        tokenizer=tokenizer,
        bos=bos,
        ends=frozenset(ends_of(config, tokenizer)),
        template=template if isinstance(template, str) else None,
        longest=longest,
    )


def require_template(voice: Voice, name: str) -> None:
    """UsageError where a model has no chat template to apply."""
    if voice.template is None:
        raise UsageError(
            f"--apply-chat-template: {name} has no chat template.",
            hint="Leave the flag out, or make the artifact with --chat-template.",
        )


def artifact_engine(subject: Subject, settings: Settings) -> Engine:
    """Load an artifact, whole, in the runtime of its container."""
    kind = RUNNERS.get(subject.container, TransformersRunner)
    folder, container, device = subject.path, subject.container, settings.device
    if kind is LlamaCppRunner:
        return LlamaCppEngine(LlamaCppRunner.load(folder, container, device=device))
    if kind is MlxRunner:
        return MlxEngine(MlxRunner.load(folder, container, device=device))
    if kind is OnnxRunner:
        return OnnxEngine(OnnxRunner.load(folder, container, device=device))
    runner = TransformersRunner.load(
        folder, container, device=device, dtype=getattr(torch, settings.dtype)
    )
    return TransformersEngine(runner.runtime, runner.model, runner.device, settings.batch_size)


def original_engine(checkpoint: Checkpoint, settings: Settings) -> Engine:
    """Load a checkpoint, whatever file it comes from and whatever is merged into it."""
    from transformers import AutoModelForCausalLM, __version__
    from transformers.initialization import no_init_weights

    dtype: torch.dtype = getattr(torch, settings.dtype)
    config = Skeleton(checkpoint.config).config
    with no_init_weights():
        # Memory that nobody writes to is not taken; the tensors replace it one by one.
        make: Any = AutoModelForCausalLM
        model = make.from_config(config, dtype=dtype)
    state = {name: checkpoint.tensor(name, dtype) for name in checkpoint.names()}
    missing, unknown = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    lacking = [name for name in missing if not (name == "lm_head.weight" and _tied(config))]
    if lacking or unknown:
        raise ArtifactError(
            f"{checkpoint.ref}: transformers misses {', '.join(lacking) or 'nothing'} and does not "
            f"know {', '.join(unknown) or 'anything'}."
        )
    model.eval().to(settings.device)
    runtime = f"transformers {__version__}; {settings.dtype} on {settings.device}"
    return TransformersEngine(runtime, model, torch.device(settings.device), settings.batch_size)


def _tied(config: Any) -> bool:
    return bool(config.tie_word_embeddings)


def forget() -> None:
    """Give the memory of a model back that nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def named(path: Path) -> str:
    """The last part of a path, as documents name artifacts."""
    return path.name or path.resolve().name
