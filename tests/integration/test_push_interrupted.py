"""A push that is killed in the middle of a file, and run again by another process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gemquant.core.artifact import Artifact, finalize
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.hub_stand_in import TOKEN, StandIn, hub_stand_in
from tests.helpers.tiny_artifact import tiny_header, tiny_manifest, write_tiny_weights

SECONDS = 300


def two_large_files(path: Path) -> Artifact:
    path.mkdir()
    exporter = CompressedTensors()
    header = tiny_header(exporter)
    write_tiny_weights(path, exporter, header)
    (path / "zz.gguf").write_bytes(bytes(range(256)) * 8000)  # larger, so sent behind the weights
    finalize(path, tiny_manifest(header, exporter))
    return Artifact.open(path)


def start(artifact: Artifact, hub: StandIn) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "gemquant", "push", str(artifact.path), "me/tiny"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_push_that_was_killed_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    artifact = two_large_files(tmp_path / "artifact")
    large = artifact.manifest.files["zz.gguf"].sha256
    reached, released = threading.Event(), threading.Event()
    with hub_stand_in() as hub:

        def stall(method: str, path: str) -> None:
            if path == f"/store/{large}":
                reached.set()
                released.wait(SECONDS)
                raise ConnectionAbortedError  # its sender is gone

        hub.fault = stall
        killed = start(artifact, hub)
        in_time = reached.wait(SECONDS)
        killed.send_signal(signal.SIGKILL)
        _, err = killed.communicate(timeout=SECONDS)
        released.set()
        assert in_time, err
        weights = artifact.manifest.files["model.safetensors"].sha256
        assert hub.uploaded == [weights]
        assert list(hub.repositories["me/tiny"].files()) == [".gitattributes"]

        hub.fault = lambda method, path: None
        again = start(artifact, hub)
        out, err = again.communicate(timeout=SECONDS)
        assert again.returncode == 0, err
        assert hub.uploaded == [weights, large]
        assert TOKEN not in out + err
        there = hub.repositories["me/tiny"].files()
    # The card has the repository's name in its commands, and the manifest that card's hash.
    card, manifest = there.pop("README.md"), json.loads(there.pop("manifest.json"))
    assert b"me/tiny" in card
    assert manifest["files"]["README.md"]["sha256"] == hashlib.sha256(card).hexdigest()
    names = sorted({*artifact.manifest.files} - {"README.md"})
    del there[".gitattributes"]
    assert there == {name: (artifact.path / name).read_bytes() for name in names}
