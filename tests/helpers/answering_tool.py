"""A tool that answers requests, started by the harness; never imported by a test."""

import json
import os
import subprocess
import time
from pathlib import Path


def serve(job, report, requests):
    child = subprocess.Popen(["sleep", "1000"])
    report({"event": "answer", "answer": {"pids": [os.getpid(), child.pid], **job}})
    for line in requests:
        request = json.loads(line)
        if request["do"] == "write":
            Path("long").write_text("x" * request["length"])
        elif request["do"] == "fail":
            raise ValueError("no such token")
        elif request["do"] == "vanish":
            os._exit(5)
        elif request["do"] == "wait":
            time.sleep(1000)
        report({"event": "answer", "answer": request})
