"""Every other artifact in transformers, rendered and put into tokens here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from gemquant.core.resources import free_memory_bytes
from gemquant.errors import RuntimeMissingError, UnsupportedError, UsageError
from gemquant.models.chat import render
from gemquant.runtimes.chat.engine import ContextFullError, Message
from gemquant.runtimes.chat.pieces import streamed
from gemquant.runtimes.chat.presets import Preset
from gemquant.runtimes.chat.sampling import Sampling
from gemquant.runtimes.transformers import TransformersRunner

END_OF_TURN = "<end_of_turn>"


@dataclass(frozen=True)
class Spoken:
    """What a conversation needs beside the model. ends: ids of tokens that end an answer."""

    tokenizer: Tokenizer
    template: str
    bos: str
    ends: Sequence[int]


def best_device() -> str:
    """The fastest device that torch has here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def require_device(device: str) -> None:
    """Raise UsageError where torch has no such device here."""
    kind, _, number = device.partition(":")
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if not (number or "0").isdigit() or int(number or 0) >= present.get(kind, 0):
        raise UsageError(
            f"--device {device}: not on this machine, or not in torch {torch.__version__}.",
            hint="Leave --device out to compute on the fastest that is.",
        )


def free_bytes_on(device: str) -> int | None:
    """Memory free where the model will be."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_memory_bytes()


def require_loadable(folder: Path, container: str) -> None:
    """Raise a GemquantError where transformers does not load such artifacts, or not here."""
    reason = TransformersRunner.unavailable(container)
    if reason is None:
        return
    if container == "mlx":
        raise UnsupportedError(
            f"{folder}: {reason}.", hint=f"On a Mac: mlx_lm.chat --model {folder}"
        )
    raise RuntimeMissingError(f"{folder}: {reason}.", hint="gemquant show says what loads it.")


def ends_of(config: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens that end an answer: the configuration's, and the end of a turn."""
    given = config.get("eos_token_id")
    ends = [given] if isinstance(given, int) else list(given or [])
    turn = tokenizer.token_to_id(END_OF_TURN)
    return ends if turn is None or turn in ends else [*ends, turn]


class TransformersEngine:
    """An artifact that transformers loads."""

    def __init__(
        self,
        folder: Path,
        container: str,
        spoken: Spoken,
        preset: Preset,
        *,
        context: int,
        device: str,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        dtype = torch.float32 if preset.dtype == "float32" else torch.bfloat16
        self._runner = TransformersRunner.load(folder, container, device=device, dtype=dtype)
        self._spoken, self._compiled = spoken, preset.compiled and device.startswith("cuda")
        self.context = context
        self.description = self._runner.runtime

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
    ) -> Iterator[str]:
        """Yield the answer piece by piece."""
        spoken = self._spoken
        text = render(spoken.template, messages, bos=spoken.bos, add_generation_prompt=True)
        # The template has written <bos>.
        ids = spoken.tokenizer.encode(text, add_special_tokens=False).ids
        room = self.context - len(ids)
        if room < 1:
            raise ContextFullError(
                f"{len(ids)} tokens leave no room for an answer in a context of {self.context}"
            )
        prompt = torch.tensor([ids], device=self._runner.device)

        def produce(put: Callable[[str], None]) -> None:
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            self._runner.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=min(room, sampling.max_tokens),
                eos_token_id=list(spoken.ends),
                streamer=_Streamer(spoken, put),
                stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
                **_drawn(sampling),
                **({"cache_implementation": "static"} if self._compiled else {}),
            )

        return streamed(produce, stop)

    def close(self) -> None:
        """Free the model."""
        del self._runner


def _drawn(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or None,
    }


class _Streamer(BaseStreamer):
    """Decodes tokens as they come; the first call brings the prompt."""

    def __init__(self, spoken: Spoken, put: Callable[[str], None]) -> None:
        self._spoken, self._put = spoken, put
        self._stream = DecodeStream(skip_special_tokens=True)
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take token ids."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        for token in value.flatten().tolist():
            piece = self._stream.step(self._spoken.tokenizer, token)
            if piece:
                self._put(piece)

    def end(self) -> None:
        """Nothing is held back."""


class _Stopped(StoppingCriteria):
    """Ends generation when an event is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> Any:
        """Say of each sequence whether it is done."""
        del scores, others
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)
