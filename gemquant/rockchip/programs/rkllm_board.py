"""Runs an RKLLM file on a board and reports the results: PYTHON rkllm_board.py JOB.

Standard library only, Python 3.8. Its folder also has rkllm_runtime.py, rkllm_structures.py and the
files of the job. Events go to stdout, one JSON object a line; the runtime's output goes to stderr.
When stdin closes, as it does with the connection, the folder is removed and the program ends.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # isolated, Python does not look there

if TYPE_CHECKING:
    from gemquant.rockchip.programs import rkllm_runtime, rkllm_structures
else:
    import rkllm_runtime
    import rkllm_structures

FOLDER_PREFIX = "gemquant-board."
BYTES_A_LINE = 1 << 22


# ---------------------------------------------------------------- tasks


def generate(runtime: rkllm_runtime.Runtime, job: dict[str, Any], report: Any) -> None:
    """Continue one prompt several times; report each run."""
    for number in range(job["warm_up_runs"] + job["repetitions"]):
        run = runtime.run(job["prompt"], rkllm_structures.INFER_GENERATE, job["new_tokens"])
        if not run.tokens:
            raise rkllm_runtime.Refused("the runtime generated nothing")
        report(
            {
                "event": "run",
                "warm_up": number < job["warm_up_runs"],
                "tokens": run.tokens,
                "first_token_seconds": run.seconds[0],
                "total_seconds": run.seconds[-1],
                "statistics": run.statistics,
                "watched": sample(job["watch"]),
            }
        )


def logits(runtime: rkllm_runtime.Runtime, job: dict[str, Any], report: Any) -> None:
    """Report the logits of every token of every window, some rows a line."""
    if not runtime.layout.logits:
        raise rkllm_runtime.Refused(
            f"librkllmrt {job['version']} has no logits, which came with 1.2.0: perplexity is not "
            "available. Convert with toolkit 1.2.0 or newer, and install its runtime; or measure "
            "speed alone, with gemquant bench"
        )
    for index, ids in enumerate(job["windows"]):
        seen = [0]

        def rows(found: Any, index: int = index, ids: Any = ids, seen: Any = seen) -> None:
            if seen[0] < len(ids):  # the last call may show the same memory again
                seen[0] += _report_rows(found, index, seen[0], len(ids), report)

        runtime.run(ids, rkllm_structures.INFER_GET_LOGITS, 1, rows)
        if seen[0] != len(ids):
            raise rkllm_runtime.Refused(
                f"the runtime gave logits of {seen[0]} of {len(ids)} tokens: perplexity cannot be "
                "computed"
            )
        report({"event": "window", "index": index, "watched": sample(job["watch"])})


def _report_rows(found: Any, window: int, first: int, expected: int, report: Any) -> int:
    count, columns = int(found.num_tokens), int(found.vocab_size)
    if count < 1 or columns < 2 or first + count > expected:
        raise rkllm_runtime.Refused(
            f"the runtime gave logits of {first + count} tokens over {columns} entries for "
            f"{expected} tokens"
        )
    size = 4 * columns
    at_once = max(1, BYTES_A_LINE // size)
    for start in range(0, count, at_once):
        some = min(at_once, count - start)
        data = ctypes.string_at(found.logits + start * size, some * size)
        report(
            {
                "event": "logits",
                "window": window,
                "first": first + start,
                "rows": some,
                "columns": columns,
                "crc32": zlib.crc32(data),
                "data": base64.b64encode(data).decode("ascii"),
            }
        )
    return count


TASKS = {"generate": generate, "logits": logits}


def sample(watch: dict[str, str]) -> dict[str, int]:
    """Values of system files, as far as they can be read."""
    found = {}
    for name, path in watch.items():
        try:
            found[name] = int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return found


def require_whole(path: str, sha256: str) -> None:
    """Compare a file with the one that was sent."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise rkllm_runtime.Refused(f"{Path(path).name} arrived damaged")


def peak_resident_bytes() -> int | None:
    """Largest resident memory of this process."""
    try:
        lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None


def work(job: dict[str, Any], report: Any) -> None:
    """Do a job."""
    require_whole(job["model"], job["sha256"])
    version = rkllm_runtime.version_of(job["library"], job["release"])
    job["version"] = version
    try:
        runtime = rkllm_runtime.Runtime(job["library"], version)
    except ValueError as error:
        raise rkllm_runtime.Refused(str(error)) from None
    if job["task"] == "logits" and not runtime.layout.logits:
        logits(runtime, job, report)  # refuses, before a model is loaded
    started = time.perf_counter()
    chosen = runtime.load(job["model"], job["max_context"], job.get("new_tokens", 1))
    loaded = time.perf_counter() - started
    report({"event": "loaded", "seconds": loaded, "version": version, "chosen": chosen})
    TASKS[job["task"]](runtime, job, report)
    runtime.close()
    report({"event": "done", "peak_resident_bytes": peak_resident_bytes()})


# ---------------------------------------------------------------- the process


def end_with_connection(folder: Path) -> None:
    """Remove the folder and end when stdin closes."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        if folder.name.startswith(FOLDER_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(job_file: str) -> int:
    """Do a job; return the exit status."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    folder = Path(__file__).resolve().parent
    (folder / "pid").write_text(str(os.getpid()), encoding="ascii")
    end_with_connection(folder)

    def report(event: dict[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    report({"event": "started", "python": ".".join(map(str, sys.version_info[:3]))})
    try:
        work(json.loads(Path(job_file).read_text(encoding="utf-8")), report)
    except rkllm_runtime.Refused as error:
        report({"event": "failed", "error": str(error)[:2000]})
        return 1
    except Exception as error:  # noqa: BLE001 - every error is reported
        report({"event": "failed", "error": f"{type(error).__name__}: {error}"[:2000]})
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    # Threads of the runtime must not keep the process.
    os._exit(status)
