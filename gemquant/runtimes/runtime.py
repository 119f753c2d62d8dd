"""What a runtime offers, and the register of all runtimes.

A runtime is the program that executes a finished artifact: llama.cpp, mlx-lm, onnxruntime,
transformers, vLLM. Each is one class in this package. ``eval`` (level native), ``bench``, ``tasks``
and ``chat`` all load artifacts through it. To add one, write a subclass of LogitsRuntime or
SpeedRuntime in a new file and add it to RUNTIMES.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from gemquant.core.resources import peak_resident_bytes
from gemquant.errors import RuntimeMissingError

if TYPE_CHECKING:  # torch's memory must not count in a benchmark of llama.cpp
    from torch import Tensor

POSITIONS_AT_ONCE = 128
"""Logits exist for this many positions at a time: 134 MB with Gemma's vocabulary."""


@dataclass(frozen=True)
class LoadOptions:
    """How to load an artifact.

    dtype: name of a torch type, or ``auto`` for the type of the files; None for float32, or the
    type of the files where nothing is quantized. threads: None for torch's. mode: one of the
    runtime's; None for its default. max_tokens: longest sequence, for runtimes that allocate the
    key-value cache while loading. batch_size: windows per forward pass, where the runtime batches.
    """

    device: str = "cpu"
    dtype: str | None = None
    threads: int | None = None
    mode: str | None = None
    max_tokens: int | None = None
    batch_size: int = 1


DEFAULTS = LoadOptions()


@dataclass(frozen=True)
class Mode:
    """A way of running. not_run: why it is not possible on this machine, or None."""

    name: str
    not_run: str | None = None


@dataclass(frozen=True)
class Window:
    """Token ids to read, BOS included. first: the first position whose logits are wanted."""

    ids: tuple[int, ...]
    first: int = 0


@dataclass(frozen=True)
class Chunk:
    """Logits of consecutive positions of one window, (positions, vocabulary) float32.

    window: its index in the request. start: the first of the positions. The next chunk may
    overwrite the logits.
    """

    window: int
    start: int
    logits: Tensor


@dataclass(frozen=True)
class Timing:
    """One timed run. All seconds count from the moment the prompt was passed in.

    tokens: the new ones, chosen greedily. prefill_seconds: until the prompt's logits existed.
    first_token_seconds, total_seconds: until the caller had the first and the last new token.
    """

    tokens: Sequence[int]
    prefill_seconds: float
    first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class Requirement:
    """What must be installed to run a container.

    packages: distributions. install: the command that installs them. unmet: why the container
    cannot run, where that is known otherwise.
    """

    packages: Sequence[str] = ()
    install: str | None = None
    unmet: str | None = None

    def missing(self) -> str | None:
        """Return what is missing, with the command that installs it; None if nothing is."""
        if self.unmet is not None:
            return self.unmet
        absent = [package for package in self.packages if installed_version(package) is None]
        return f"{' and '.join(absent)} not installed; {self.install}" if absent else None


class Runtime(ABC):
    """A loaded artifact. It holds the whole model, so keep it no longer than needed.

    software: versions, type computed in and place, for documents.
    """

    name: ClassVar[str]
    packages: ClassVar[Sequence[str]]
    """Distributions whose versions decide the figures."""
    modules: ClassVar[Sequence[str]] = ()
    """What loading imports."""

    software: str

    @classmethod
    @abstractmethod
    def requirement(cls, container: str, device: str) -> Requirement:
        """Return what must be installed to run a container."""

    @classmethod
    def unavailable(cls, container: str, device: str = "cpu") -> str | None:
        """Return why a container cannot run on this machine, or None if it can."""
        if container not in RUNTIMES[cls.name].containers:
            return f"{cls.name} does not load {container}"
        return cls.requirement(container, device).missing()

    @classmethod
    def require(cls, path: Path, container: str, device: str) -> None:
        """Raise RuntimeMissingError with the command to install what is missing."""
        reason = cls.unavailable(container, device)
        if reason is not None:
            raise RuntimeMissingError(
                f"{path} cannot be run in {cls.name}: {reason}.",
                hint=cls.requirement(container, device).install,
            )

    @classmethod
    def prepare(cls) -> None:
        """Import the libraries, so that this does not count as loading."""
        for module in cls.modules:
            importlib.import_module(module)

    @classmethod
    @abstractmethod
    def load(cls, path: Path, container: str, options: LoadOptions = DEFAULTS) -> Self:
        """Load a finished folder, or a file.

        RuntimeMissingError if a package is missing; ArtifactError if the runtime refuses the files.
        """


def likeliest(logits: Any, suppressed: Collection[int]) -> int:
    """The likeliest token that is not suppressed. logits: (vocabulary,), of torch or numpy."""
    logits[[token for token in suppressed if token < len(logits)]] = -math.inf
    return int(logits.argmax())


class LogitsRuntime(Runtime):
    """A runtime that returns logits and continues prompts greedily.

    max_tokens: a reasonable number of tokens to run in all, or None. max_window: the longest window
    that is computed correctly, or None for any. end_tokens: ids that end a text.
    """

    max_tokens: int | None = None
    max_window: int | None = None
    end_tokens: frozenset[int] = frozenset()

    @abstractmethod
    def logits(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Yield logits of every window from its ``first`` position on, softcap included.

        Windows come in whatever order is fastest, the positions of a window in order.
        """

    @abstractmethod
    def tokens(
        self, prompt: Sequence[int], *, limit: int, suppressed: Collection[int] = ()
    ) -> Iterator[int]:
        """Yield the ``limit`` tokens that greedily follow a prompt, which includes its BOS.

        suppressed: tokens that are passed over.
        """

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        return token in self.end_tokens

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that greedily follow a prompt, up to one that ends the text."""
        generated: list[int] = []
        for token in self.tokens(prompt, limit=max_new_tokens):
            generated.append(token)
            if self.ends(token):
                break
        return generated

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the logits that predict a token: (positions, vocabulary) float32.

        ids: (windows, tokens) int64, each window with its BOS. All positions of all windows come in
        order, except each window's last, which predicts nothing. The next chunk may overwrite one.
        """
        for window in ids.tolist():
            for chunk in self.logits([Window(tuple(window[:-1]))]):
                yield chunk.logits


class HiddenStatesRuntime(LogitsRuntime):
    """A runtime that also returns what its head reads: far smaller than logits."""

    @abstractmethod
    def head_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the output matrix; logits are hidden · rowsᵀ before any softcap."""

    @abstractmethod
    def hidden_states(self, ids: Tensor) -> Tensor:
        """Return what the head reads, after the final norm: (windows, tokens, hidden).

        ids: (windows, tokens) int64, each window with its BOS. One window runs at a time.
        """


class EmbeddingRuntime(Runtime):
    """A runtime that runs embedding models."""

    @abstractmethod
    def embeddings(self, ids: Tensor) -> Tensor:
        """Return embeddings of texts (texts, tokens) int64: (texts, features) float32.

        Of any length, after the Dense modules that the artifact has.
        """


class SpeedRuntime(Runtime):
    """A runtime whose speed ``gemquant bench`` measures."""

    @classmethod
    def modes(cls, path: Path, device: str) -> Sequence[Mode]:
        """Return the ways of running an artifact, the plainest first."""
        del path, device
        return [Mode("default")]

    def peak_resident_bytes(self) -> int | None:
        """Peak resident memory of the process that computes; None if it is unknown."""
        return peak_resident_bytes()

    @abstractmethod
    def time(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Start a new sequence and continue a prompt greedily by exactly ``new_tokens`` tokens."""

    def peak_device_bytes(self) -> int | None:
        """Peak memory allocated on an accelerator; None without one, or if it is unknown."""
        return None


@dataclass(frozen=True)
class Entry:
    """Where a runtime's class is, and what it is used for; reading this imports nothing large."""

    module: str
    attribute: str
    containers: frozenset[str]
    logits: bool = True
    speed: bool = True

    def load_class(self) -> Any:
        """Import the class."""
        return getattr(importlib.import_module(f"gemquant.runtimes.{self.module}"), self.attribute)


RUNTIMES: Mapping[str, Entry] = {
    "llama.cpp": Entry("llamacpp", "LlamaCpp", frozenset({"gguf"})),
    "mlx-lm": Entry("mlx", "Mlx", frozenset({"mlx"})),
    "onnxruntime": Entry("onnx", "OnnxRuntime", frozenset({"onnx"}), speed=False),
    "onnxruntime-genai": Entry("onnx", "OnnxGenai", frozenset({"onnx"}), logits=False),
    "transformers": Entry(
        "transformers",
        "Transformers",
        frozenset(
            {"awq-gemm", "bitsandbytes", "compressed-tensors", "gptq", "metal", "safetensors"}
        ),
    ),
    "vllm": Entry(
        "vllm", "Vllm", frozenset({"awq-gemm", "compressed-tensors", "gptq", "safetensors"})
    ),
}
"""In the order of preference, where several load a container."""
LOGITS_RUNTIMES: Sequence[str] = [name for name, entry in RUNTIMES.items() if entry.logits]
SPEED_RUNTIMES: Sequence[str] = [name for name, entry in RUNTIMES.items() if entry.speed]


def logits_runtime(container: str, name: str | None = None) -> type[LogitsRuntime]:
    """Return the runtime that evaluates a container; transformers for an unknown one.

    name: the one to take, whatever it says of the container.
    """
    if name is not None:
        named: type[LogitsRuntime] = RUNTIMES[name].load_class()
        return named
    entries = (each for each in RUNTIMES.values() if each.logits and container in each.containers)
    runtime: type[LogitsRuntime] = next(entries, RUNTIMES["transformers"]).load_class()
    return runtime


def speed_runtimes(container: str) -> Sequence[str]:
    """Return the names of the runtimes that benchmark a container."""
    return [name for name in SPEED_RUNTIMES if container in RUNTIMES[name].containers]


def speed_runtime(name: str) -> type[SpeedRuntime]:
    """Import the class of a runtime that is benchmarked."""
    runtime: type[SpeedRuntime] = RUNTIMES[name].load_class()
    return runtime


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_place(threads: int) -> str:
    """Name the processor as the place where a runtime computes."""
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"
