"""Sampled text: how the next token is drawn, and tokens streamed from a library's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gemquant.errors import GemquantError, UsageError

LARGEST_SEED = 2**32 - 2  # for llama.cpp the next number means "any"
_SECONDS_TO_STOP = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """Sampling options; the defaults are Google's recommendation for Gemma.

    temperature: 0 takes the most likely token. seed: None for a random one. max_tokens: per answer.
    """

    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 64
    seed: int | None = None
    max_tokens: int = 1024

    def problems(self) -> Sequence[GemquantError]:
        """Return everything that is out of range."""
        rules = [
            ("--temperature", self.temperature, 0 <= self.temperature <= 10, "from 0 to 10"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "above 0, and at most 1"),
            ("--top-k", self.top_k, self.top_k >= 0, "at least 0 (0 for no limit)"),
            ("--max-tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            (
                "--seed",
                self.seed,
                self.seed is None or 0 <= self.seed <= LARGEST_SEED,
                f"from 0 to {LARGEST_SEED}",
            ),
        ]
        return [
            UsageError(f"{flag} {value}: must be {rule}.")
            for flag, value, valid, rule in rules
            if not valid
        ]


def stream_from_callback(
    produce: Callable[[Callable[[T], None]], None], stop: threading.Event
) -> Generator[T, None, None]:
    """Yield what ``produce`` passes to its argument, while it runs in another thread.

    The caller stays interruptible while native code computes. When it stops iterating, also by an
    interrupt, ``stop`` is set and the thread gets ten seconds to end. What ``produce`` raises is
    raised here.
    """
    items: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            produce(lambda item: items.put((item,)))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            failures.append(error)
        finally:
            items.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            yield item[0]
    finally:
        stop.set()
        thread.join(_SECONDS_TO_STOP)
    if failures:
        raise failures[0]
