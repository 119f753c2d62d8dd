"""Runs one program for another process: PYTHON harness.py PROGRAM JOB RESULT.

PROGRAM is a file with ``run(job, report)``: ``job`` is the JSON object of the file JOB, and what
``run`` returns is written to RESULT. ``report`` takes events, which go to stdout one JSON object a
line. Whatever a tool prints goes to stderr; it reads an empty stdin. When the process at the other
end of stdin dies, so does this one, with all its children.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

MAX_ERROR_LENGTH = 2000


def main(program: str, job_file: str, result_file: str) -> int:
    """Run a program; return the exit status."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # tools print to stdout whatever they like
    _end_with_parent()

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
        result = json.dumps(module.run(job, report))
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


def _end_with_parent() -> None:
    """Kill this process group when the other end of stdin closes; give the tool an empty stdin."""
    parent = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)

    def wait() -> None:
        while os.read(parent, 4096):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    status = main(*sys.argv[1:4])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that a tool left behind must not keep the process.
    os._exit(status)
