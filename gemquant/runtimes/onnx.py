"""The finished artifact in onnxruntime: level ``native`` for the container ``onnx``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from gemquant.errors import ArtifactError, RuntimeMissingError

CONTAINER = "onnx"
INSTALL = "pip install 'gemquant[onnx]'"
MODEL_FILE = "model.onnx"
POSITIONS_AT_ONCE = 128
"""Logits exist for so many positions: 134 MB with Gemma's vocabulary."""


@dataclass(frozen=True)
class OnnxRunner:
    """A loaded artifact. Hold it no longer than needed: the whole model is in memory.

    runtime: name and version of all that computes, for a certificate. max_tokens, max_window: no
    bounds on what to run in all, nor on a window.
    """

    name: ClassVar[str] = "onnxruntime"

    runtime: str
    session: Any
    empty: Mapping[str, np.ndarray[Any, Any]]
    eos: frozenset[int]
    max_tokens: int | None = None
    max_window: int | None = None

    @staticmethod
    def unavailable(container: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        if container != CONTAINER:
            return f"onnxruntime does not load {container}"
        return None if _version() else f"onnxruntime not installed; {INSTALL}"

    @classmethod
    def load(cls, folder: Path, container: str, *, device: str = "cpu") -> Self:
        """Load a finished folder, to compute on the processor.

        device: where everything else is computed. RuntimeMissingError where the package is missing,
        or the folder is made for a GPU; ArtifactError where onnxruntime refuses the files.
        """
        del device
        reason = cls.unavailable(container)
        if reason is not None:
            raise RuntimeMissingError(f"{folder} cannot be run: {reason}.", hint=INSTALL)
        dtype = _dtype(folder)
        if dtype != "float32":
            raise RuntimeMissingError(f"made for NVIDIA GPUs, in {dtype}: not executed here")
        import onnxruntime

        threads = torch.get_num_threads()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            path, providers = str(folder / MODEL_FILE), ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(path, options, providers=providers)
            empty, eos = _cache(folder, session)
        except Exception as error:
            # onnxruntime raises a dozen classes of its own for what is wrong with a model.
            raise ArtifactError(f"onnxruntime refuses {folder}: {error}") from error
        place = f"{threads} CPU thread{'s' if threads > 1 else ''}"
        return cls(f"onnxruntime {_version()}; {place}", session, empty, eos)

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the logits that predict a token, chunk by chunk: (positions, vocabulary) float32.

        ids: (windows, tokens) int64, each window with its BOS. Positions are those of all windows
        in order, but each window's last, which predicts nothing. Keys and values are kept from one
        chunk to the next, as when text is generated.
        """
        for window in ids.cpu().numpy().astype(np.int64):
            cache = dict(self.empty)
            for start in range(0, len(window) - 1, POSITIONS_AT_ONCE):
                chunk = window[start : min(start + POSITIONS_AT_ONCE, len(window) - 1)]
                logits, cache = self._run(chunk, cache, seen=start)
                yield torch.from_numpy(logits)

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt (BOS included by the caller), greedily."""
        made: list[int] = []
        for token in islice(self.tokens(prompt), max_new_tokens):
            made.append(token)
            if token in self.eos:
                break
        return made

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """Yield what greedily follows a prompt, without end."""
        cache, seen = dict(self.empty), 0
        rest = np.array(prompt, dtype=np.int64)
        while True:
            logits, cache = self._run(rest, cache, seen=seen)
            seen += len(rest)
            token = int(logits[-1].argmax())
            yield token
            rest = np.array([token], dtype=np.int64)

    def _run(
        self, tokens: np.ndarray[Any, Any], cache: Mapping[str, Any], *, seen: int
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        mask = np.ones((1, seen + len(tokens)), dtype=np.int64)
        feed = {"input_ids": tokens[None], "attention_mask": mask, **cache}
        kept = [name.replace("past_key_values.", "present.") for name in cache]
        logits, *present = self.session.run(["logits", *kept], feed)
        return logits[0], dict(zip(cache, present, strict=True))


def _cache(folder: Path, session: Any) -> tuple[dict[str, Any], frozenset[int]]:
    """Return empty keys and values for every layer, and the tokens that end a text."""
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    decoder = config["decoder"]
    shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
    empty = {
        given.name: np.zeros(shape, dtype=np.float32)
        for given in session.get_inputs()
        if given.name.startswith("past_key_values.")
    }
    eos = config["eos_token_id"]
    return empty, frozenset(eos if isinstance(eos, list) else [eos])


def _dtype(folder: Path) -> str:
    """Type of everything that is not quantized, as config.json has it."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder / 'config.json'} says no dtype: {error}") from None


def _version() -> str | None:
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
