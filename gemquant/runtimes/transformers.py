"""The finished artifact in transformers, through the kernels of its own container.

This is level ``native`` for both containers of ``--target cuda`` and for ``metal``: the files are
read by foreign code only, compressed-tensors', gptqmodel's or transformers' own.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gemquant.errors import ArtifactError, RuntimeMissingError

logger = logging.getLogger(__name__)

_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "awq-gemm": ("gptqmodel", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "compressed-tensors": ("compressed-tensors", "accelerate"),
    "gptq": ("gptqmodel", "optimum", "accelerate"),
    "metal": ("accelerate",),
    "safetensors": (),
}
"""Per container, what transformers itself needs to load it."""

_INSTALL: Mapping[str, str] = {
    "awq-gemm": "pip install gptqmodel accelerate",
    "bitsandbytes": "pip install 'gemquant[bitsandbytes]'",
    "compressed-tensors": "pip install 'gemquant[native]'",
    "gptq": "pip install gptqmodel optimum accelerate",
    "metal": "pip install 'gemquant[native]'",
}
"""Per container, what installs it."""


@dataclass(frozen=True)
class TransformersRunner:
    """A loaded artifact. Hold it no longer than needed: the whole model is in memory.

    runtime: name and version of all that computes, for a certificate. max_tokens, max_window: no
    bounds on what to run in all, nor on a window.
    """

    name: ClassVar[str] = "transformers"

    runtime: str
    model: Any
    device: torch.device
    max_tokens: int | None = None
    max_window: int | None = None

    @staticmethod
    def unavailable(container: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        if container not in _PACKAGES:
            return f"transformers does not load {container}"
        missing = [package for package in _PACKAGES[container] if _version(package) is None]
        told = f"{' and '.join(missing)} not installed; {_INSTALL.get(container)}"
        return told if missing else None

    @classmethod
    def load(
        cls,
        folder: Path,
        container: str,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        attention: str | None = None,
    ) -> Self:
        """Load a finished folder, as ``from_pretrained`` would for anyone.

        dtype: type to compute in; by default float32, or the stored type where nothing is
        quantized, since that is then what is being tried. attention: transformers' name of an
        implementation; its own choice where not given. RuntimeMissingError where a package is
        missing; ArtifactError where the runtime refuses the files.
        """
        reason = cls.unavailable(container)
        if reason is not None:
            raise RuntimeMissingError(
                f"{folder} cannot be run in transformers: {reason}.",
                hint=_INSTALL.get(container),
            )
        from transformers import AutoModelForCausalLM

        plain = container == "safetensors"
        # Placing modules while loading needs accelerate, which a plain folder can do without.
        placed = {} if plain else {"device_map": device}
        chosen = {} if attention is None else {"attn_implementation": attention}
        asked = dtype or ("auto" if plain else torch.float32)
        try:
            with _quiet():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=asked, local_files_only=True, **placed, **chosen
                )
                model.eval()
                if plain:
                    model.to(device)
                dtype = dtype or (model.dtype if plain else torch.float32)
                if container == "metal" and torch.device(device).type != "mps":
                    # Decoded, everything comes in the files' own type, whatever was asked for.
                    model.to(dtype)
                # compressed-tensors decodes its weights in the first forward pass.
                with torch.inference_mode():
                    model(torch.zeros((1, 1), dtype=torch.int64, device=device))
        except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(f"transformers refuses {folder}: {error}") from error
        runtime = ", ".join(
            f"{package} {_version(package)}" for package in ("transformers", *_PACKAGES[container])
        )
        runtime += f"; {str(dtype).removeprefix('torch.')} on {device}"
        if container == "metal" and torch.device(device).type != "mps":
            runtime += "; Metal kernel not executed here"
        return cls(runtime, model, torch.device(device))

    @property
    def head(self) -> Tensor:
        """The output table, (vocabulary, hidden); logits are hidden · headᵀ before any softcap."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight.detach()

    def head_rows(self, start: int, stop: int) -> Tensor:
        """Some rows of the output table."""
        return self.head[start:stop]

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor) -> Tensor:
        """Return what the head reads, after the final norm.

        ids: (windows, tokens) int64, each window with its BOS. Returns (windows, tokens, hidden)
        in the type computed in; one window is in flight at a time.
        """
        with _quiet():
            hidden = [
                self.model.model(input_ids=window[None].to(self.device), use_cache=False)[0]
                for window in ids
            ]
        return torch.cat(hidden)

    @torch.inference_mode()
    def logits(self, ids: Tensor, positions: Sequence[int]) -> Tensor:
        """Return logits at chosen positions, softcap included.

        ids: (windows, tokens). Returns (windows, len(positions), vocabulary) float32.
        """
        chosen = torch.tensor(positions, device=self.device)
        rows = [
            self.model(
                input_ids=window[None].to(self.device), use_cache=False, logits_to_keep=chosen
            ).logits
            for window in ids
        ]
        return torch.cat(rows).float()

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt (BOS included by the caller), greedily."""
        ids = torch.tensor([list(prompt)], device=self.device)
        with _quiet():
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                top_k=None,
                top_p=None,
            )
        return [int(token) for token in output[0, ids.shape[1] :]]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep foreign banners and progress bars out of our output; ``-vv`` shows them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield
    finally:
        logger.debug("%s", said.getvalue())
