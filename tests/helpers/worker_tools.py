"""A tool with many faults, one per job; started by the harness, never imported by a test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def run(job, report):
    return FAULTS[job["fault"]](job, report)


def none(job, report):
    report({"event": "start", "task": "working", "total": 3})
    sys.stdout.write("a banner on stdout")
    os.system("echo a child on stdout")
    for _ in range(3):
        report({"event": "advance", "task": "working"})
    report({"event": "note", "text": "nearly done"})
    facts = {"answer": 42, "modules": sorted(sys.modules), "environment": dict(os.environ)}
    return {**facts, "stdin": sys.stdin.read(), "folder": str(Path.cwd()), "flags": list(sys.flags)}


def crash(job, report):
    sys.stderr.write("about to divide\n")
    return 1 // 0


def leave(job, report):
    sys.exit(3)


def vanish(job, report):
    os._exit(5)


def killed(job, report):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(job, report):
    child = subprocess.Popen(["sleep", "1000"])
    Path(job["pids"]).write_text(json.dumps([os.getpid(), child.pid]))
    while True:
        time.sleep(1)


def stubborn(job, report):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hang(job, report)


def greedy(job, report):
    held = []
    while True:
        held.append(bytearray(os.urandom(10_000_000)))


def greedy_child(job, report):
    code = "import os, time; held = os.urandom(300_000_000); time.sleep(1000)"
    return subprocess.call([sys.executable, "-c", code])


def wordy(job, report):
    for number in range(100):
        sys.stderr.write(f"line {number} \x1b[31m" + "x" * 1000 + "\n")
    raise ValueError("too many words")


def invalid(job, report):
    return {"answer": "many"}


def unknown_event(job, report):
    report({"event": "sing"})
    time.sleep(1000)


def unannounced(job, report):
    report({"event": "advance", "task": "never begun"})
    time.sleep(1000)


def orphan(job, report):
    child = subprocess.Popen(["sleep", "1000"])
    Path(job["pids"]).write_text(json.dumps([child.pid]))
    return {"answer": 42}


FAULTS = {name: value for name, value in list(globals().items()) if callable(value)}
