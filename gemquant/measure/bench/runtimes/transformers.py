"""transformers: eager attention as the baseline, and what its users may switch on.

eager               eager attention, a cache that grows
sdpa                torch's scaled-dot-product attention, a cache that grows
flash-attention-2   the package flash-attn, a cache that grows
static              eager attention, a cache of its final size
compiled            the same with the decoding step compiled; on accelerators only, as
                    transformers' own rule is
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gemquant.formats.checkpoint.bounded_json import read_json_object
from gemquant.measure.bench.engine import Load, Mode, Timing

ATTENTION: Mapping[str, str] = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash-attention-2": "flash_attention_2",
    "static": "eager",
    "compiled": "eager",
}


@dataclass(frozen=True)
class Transformers:
    """The runtime."""

    name: str = "transformers"
    packages: Sequence[str] = (
        "transformers",
        "torch",
        "accelerate",
        "compressed-tensors",
        "bitsandbytes",
        "gptqmodel",
        "flash-attn",
    )

    def unavailable(self, container: str, device: str) -> str | None:
        """Say why a container cannot be run here, or None if it can."""
        from gemquant.runtimes.transformers import TransformersRunner

        del device  # is looked at before
        return TransformersRunner.unavailable(container)

    def modes(self, folder: Path, device: str) -> Sequence[Mode]:
        """All modes, the impossible ones with the reason."""
        config = read_json_object(folder / "config.json")
        model_type = config.get("text_config", config).get("model_type")
        on_cuda = device.startswith("cuda")
        reasons: dict[str, str] = {}
        if model_type == "gemma2":
            reasons["sdpa"] = "transformers has no sdpa for Gemma 2: torch's has no softcap"
        if not on_cuda:
            reasons["flash-attention-2"] = "needs an NVIDIA GPU"
            reasons["compiled"] = f"transformers compiles on accelerators only, not on {device}"
        elif not _installed("flash-attn"):
            reasons["flash-attention-2"] = "flash-attn not installed; pip install flash-attn"
        return [Mode(name, reasons.get(name)) for name in ATTENTION]

    def prepare(self) -> None:
        """Import transformers."""
        from transformers import AutoModelForCausalLM  # noqa: F401

    def load(self, asked: Load) -> LoadedTransformers:
        """Load a folder, as ``from_pretrained`` would for anyone."""
        import torch

        from gemquant.runtimes.transformers import TransformersRunner

        torch.set_num_threads(asked.threads)
        runner = TransformersRunner.load(
            asked.path,
            asked.container,
            device=asked.device,
            dtype=getattr(torch, _dtype(asked)),
            attention=ATTENTION[asked.mode],
        )
        return LoadedTransformers(
            f"torch {torch.__version__}, {runner.runtime}", runner.model, asked
        )


@dataclass(frozen=True)
class LoadedTransformers:
    """A model of transformers, and how it is to run."""

    software: str
    model: Any
    asked: Load

    def generate(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Forget what was before, and continue a prompt by exactly so many tokens, greedily."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        device = torch.device(self.asked.device)
        # Not hooks on the model: they would be compiled with it, anew for every run.
        computed, chosen = _Computed(device), _Chosen(device)
        fixed = self.asked.mode in {"static", "compiled"}
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,  # as many as asked for, wherever the text would end
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static" if fixed else None,
            disable_compile=self.asked.mode != "compiled",
        )
        started = time.perf_counter()
        ids = torch.tensor([list(prompt)], device=device)
        with torch.inference_mode():
            made = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=LogitsProcessorList([computed]),
                stopping_criteria=StoppingCriteriaList([chosen]),
            )
        tokens = [int(token) for token in made[0, len(prompt) :].tolist()]
        ended = time.perf_counter()
        assert computed.first is not None
        assert chosen.first is not None
        return Timing(tokens, computed.first - started, chosen.first - started, ended - started)

    def peak_device_bytes(self) -> int | None:
        """Largest memory of torch's own allocator, on an NVIDIA GPU."""
        import torch

        if not self.asked.device.startswith("cuda"):
            return None
        return int(torch.cuda.max_memory_allocated(torch.device(self.asked.device)))


class _Clock:
    """Notes when it is called for the first time, all work on the device done.

    first: seconds of ``time.perf_counter``.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self.first: float | None = None

    def _note(self) -> None:
        if self.first is None:
            _synchronize(self._device)
            self.first = time.perf_counter()


class _Computed(_Clock):
    """A processor of logits that changes nothing: it is called when logits are there."""

    def __call__(self, _input_ids: Any, scores: Any) -> Any:
        self._note()
        return scores


class _Chosen(_Clock):
    """A criterion that stops nothing: it is called when a token has been chosen."""

    def __call__(self, input_ids: Any, _scores: Any, **_: Any) -> Any:
        import torch

        self._note()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _dtype(asked: Load) -> str:
    """The type asked for, or the one in which the folder's floating-point weights are stored."""
    if asked.dtype != "auto":
        return asked.dtype
    config = read_json_object(asked.path / "config.json")
    text = config.get("text_config", config)
    named = config.get("dtype") or config.get("torch_dtype") or text.get("dtype")
    return str(named or text.get("torch_dtype") or "float32")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


RUNTIME = Transformers()
