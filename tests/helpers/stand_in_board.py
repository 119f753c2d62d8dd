"""A stand-in for a board: programs ``ssh`` and ``adb`` that run the remote command on this machine.

What a remote script reads of /sys, /proc, /usr and the like is read from a folder of made-up files.
It holds the commands to the contract of ssh and adb; it says nothing about any real board.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "ssh://rock@rock-5b.local"
"""What a user would type for it; its ssh answers to every name."""

PROGRAM = """#!{python}
import json, os, re, signal, subprocess, sys, threading
root = {root!r}
arguments, name = sys.argv[1:], os.path.basename(sys.argv[0])
with open(os.path.join(root, "log"), "a") as log:
    log.write(json.dumps([name, *arguments]) + "\\n")
refusal = os.path.join(root, "refuse")
if os.path.exists(refusal):
    sys.stderr.write(open(refusal).read())
    sys.exit(255)
if name == "ssh":
    while arguments and arguments[0].startswith("-") and arguments[0] != "--":
        flag = arguments.pop(0)
        if flag in ("-o", "-p"):
            arguments.pop(0)
    assert arguments.pop(0) == "--", "a host that begins with a dash would be an option"
    host, command = arguments[0], " ".join(arguments[1:])
else:
    assert arguments[0] == "-s", arguments
    if arguments[2] == "push":
        subprocess.run(["cp", arguments[3], arguments[4]], check=True)
        sys.exit(0)
    assert arguments[2] == "shell", arguments
    command = " ".join(arguments[3:])
places = "sys|usr/lib|usr/lib64|usr/local/lib|oem|vendor|system/lib64|userdata|data|opt|var/tmp|tmp"
proc = "proc/(?:device-tree|meminfo|loadavg|cpuinfo|debug|rknpu)"
pattern = "(?<![\\\\w./}}*$-])/(?=(?:" + places + "|" + proc + ")\\\\b)"
parts = command.split(root)  # what lies in this folder already stays as it is
command = root.join(re.sub(pattern, root + "/", part) for part in parts)
home, programs = os.path.join(root, "home"), os.path.join(root, "bin")
environment = {{"PATH": programs + ":" + {path!r}, "HOME": home}}
# A session of its own: what is there does not end with the program here, as on a board.
there = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, env=environment,
                         start_new_session=True, cwd=home)
def pass_on():
    while block := os.read(0, 65536):
        try:
            there.stdin.write(block)
            there.stdin.flush()
        except (BrokenPipeError, ValueError):
            break
    try:
        there.stdin.close()
    except (BrokenPipeError, ValueError):
        pass
threading.Thread(target=pass_on, daemon=True).start()
status = there.wait()
os._exit(status if status >= 0 else 128 - status)
"""

FILES = {
    "proc/device-tree/model": "Radxa ROCK 5B\0",
    "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
    "proc/loadavg": "0.07 0.03 0.01 1/250 4711\n",
    "proc/cpuinfo": "".join(f"processor\t: {n}\n" for n in range(8)),
    "proc/meminfo": "MemTotal: 8054824 kB\nMemAvailable: 7340032 kB\nSwapTotal: 0 kB\n",
    "sys/kernel/debug/rknpu/version": "RKNPU driver: v0.9.8\n",
    "sys/class/thermal/thermal_zone0/type": "soc-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "46230\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "75000\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "85000\n",
    "sys/class/thermal/thermal_zone0/trip_point_2_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_2_temp": "115000\n",
    "sys/class/thermal/cooling_device0/type": "thermal-cpufreq-0\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "2\n",
}
UNAME = """#!/bin/sh
case $1 in
-s) echo Linux ;;
-m) echo aarch64 ;;
*) echo 6.1.115-vendor-rk35xx ;;
esac
"""
CLOCKS = {
    "sys/devices/system/cpu/cpufreq/policy0": ("performance", 1800000),
    "sys/devices/system/cpu/cpufreq/policy4": ("performance", 2352000),
    "sys/class/devfreq/fdab0000.npu": ("userspace", 1000000000),
    "sys/class/devfreq/dmc": ("performance", 2112000000),
}


@dataclass(frozen=True)
class StandInBoard:
    """The folder of one. root: what is / there. programs: the folder with ssh and adb."""

    root: Path
    programs: Path

    def write(self, path: str, content: str) -> None:
        """Write a file of the board's."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(content)

    def clock(self, folder: str, governor: str, now: int, highest: int) -> None:
        """Write the files of a clock, in the unit that its kind has."""
        names = (
            ("scaling_governor", "scaling_cur_freq", "cpuinfo_max_freq")
            if "cpufreq" in folder
            else ("governor", "cur_freq", "max_freq")
        )
        for name, value in zip(names, (governor, now, highest), strict=True):
            self.write(f"{folder}/{name}", f"{value}\n")

    def log(self) -> list[list[str]]:
        """Every call, with its arguments."""
        return [json.loads(line) for line in (self.root / "log").read_text().splitlines()]

    def home(self) -> list[str]:
        """Names of what lies in the home folder."""
        return sorted(path.name for path in (self.root / "home").iterdir())


def make_board(folder: Path) -> StandInBoard:
    """Write programs and files of an RK3588 that has all it needs but the runtime."""
    board = StandInBoard(folder / "root", folder / "programs")
    for path in ("home", "bin", "tmp", "var/tmp", "usr/lib"):
        (board.root / path).mkdir(parents=True)
    for path, content in FILES.items():
        board.write(path, content)
    for path, (governor, highest) in CLOCKS.items():
        board.clock(path, governor, highest, highest)
    (board.root / "bin" / "python3").symlink_to(sys.executable)
    _executable(
        board.root / "bin" / "uname",
        UNAME,
    )
    _executable(board.root / "bin" / "dmesg", "#!/bin/sh\nexit 1\n")
    board.programs.mkdir()
    program = PROGRAM.format(python=sys.executable, root=str(board.root), path=os.defpath)
    for name in ("ssh", "adb"):
        _executable(board.programs / name, program)
    return board


def _executable(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
