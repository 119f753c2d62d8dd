"""How much memory a process holds, as the system tells."""

from __future__ import annotations

import platform
import threading
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.01


def anonymous_bytes(pid: int) -> int | None:
    """What a process has allocated and the system could only swap out; None but on Linux."""
    return _status(pid, "RssAnon:")


def peak_resident_bytes() -> int | None:
    """The calling process's largest resident memory so far, mapped files included."""
    if platform.system() == "Darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Unlike getrusage's figure on Linux, this one begins anew with every program.
    return _status("self", "VmHWM:")


class PeakSampler(threading.Thread):
    """Looks at another process's anonymous memory every 10 ms until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._stopped = threading.Event()
        self.peak: int | None = None

    def run(self) -> None:
        """Look until the process is gone."""
        while not self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
            held = anonymous_bytes(self._pid)
            if held is None:
                return
            self.peak = max(self.peak or 0, held)

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self.join()


def _status(pid: int | str, field: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(field)]
    return found[0] if found else None
