"""How much memory the processes of a group hold together."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

_PRIVATE = ("RssAnon:", "RssShmem:")


def group_memory(group: int) -> int:
    """Return the bytes that a process group holds; 0 once it is gone.

    On Linux mapped files are left out: they can be dropped at any time. Elsewhere they count.
    """
    if platform.system() == "Linux":
        return sum(_private_bytes(process) for process in _members(group))
    answer = subprocess.run(
        ["ps", "-A", "-o", "pgid=,rss="], capture_output=True, text=True, check=False
    )
    rows = (line.split() for line in answer.stdout.splitlines())
    return sum(int(row[1]) * 1024 for row in rows if len(row) == 2 and row[0] == str(group))


def _members(group: int) -> list[Path]:
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            # The name, in parentheses, may hold anything; the group is the third field after it.
            fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[2]) == group:
            found.append(process)
    return found


def _private_bytes(process: Path) -> int:
    try:
        status = (process / "status").read_text(errors="replace")
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith(_PRIVATE))
    return sum(int(line[1]) * 1024 for line in lines)
