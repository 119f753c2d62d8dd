"""Runs one program for another process: PYTHON harness.py PROGRAM JOB RESULT.

PROGRAM is a file with ``run(job, report)``: ``job`` is the JSON object of the file JOB, and what
``run`` returns is written to RESULT. ``report`` takes events, which go to stdout one JSON object a
line. Whatever a tool prints goes to stderr; it reads an empty stdin. When the process at the other
end of stdin dies, so does this one, with all its children. A program that answers requests has
``serve(job, report, requests)`` instead, and gets the lines of stdin.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

MAX_ERROR_LENGTH = 2000


def main(program: str, job_file: str, result_file: str) -> int:
    """Run a program; return the exit status."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # tools print to stdout whatever they like
    requests = _requests()

    def report(event: dict[str, object]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    try:
        spec = importlib.util.spec_from_file_location("gemquant_program", program)
        if spec is None or spec.loader is None:
            raise ImportError(program)  # noqa: TRY301 - reported below like everything else
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        job = json.loads(Path(job_file).read_text(encoding="utf-8"))
        serve = getattr(module, "serve", None)
        done = serve(job, report, requests) if serve else module.run(job, report)
        result = json.dumps(done)
    except BaseException as error:  # noqa: BLE001 - SystemExit too is a failure of the tool
        traceback.print_exc()
        sys.stderr.flush()
        text = f"{type(error).__name__}: {error}"
        report({"event": "failed", "error": text[:MAX_ERROR_LENGTH]})
        return 1
    unfinished = Path(result_file + ".partial")
    unfinished.write_text(result, encoding="utf-8")
    unfinished.replace(result_file)
    report({"event": "done"})
    return 0


def _requests() -> Iterator[bytes]:
    """Return the lines of stdin; give the tool an empty one.

    When the other end closes, this process group is killed.
    """
    parent = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    lines = queue.Queue()  # type: queue.Queue[bytes]

    def wait() -> None:
        with os.fdopen(parent, "rb") as stream:
            for line in stream:
                lines.put(line)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
    return iter(lines.get, None)


if __name__ == "__main__":
    status = main(*sys.argv[1:4])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that a tool left behind must not keep the process.
    os._exit(status)
