"""From a runtime that calls back in its own thread to an iterator in ours."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

_SECONDS_TO_STOP = 10.0


def streamed(
    produce: Callable[[Callable[[str], None]], None], stop: threading.Event
) -> Iterator[str]:
    """Yield what ``produce`` gives to its argument, while it runs in a thread of its own.

    The caller thus stays interruptible while native code computes. When it takes no more, an
    interrupt included, ``stop`` is set and the thread gets a while to notice. What ``produce``
    raises is raised here.
    """
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            produce(pieces.put)
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            failures.append(error)
        finally:
            pieces.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            yield piece
    finally:
        stop.set()
        thread.join(_SECONDS_TO_STOP)
    if failures:
        raise failures[0]
