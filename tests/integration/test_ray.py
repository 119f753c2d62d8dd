"""``gemquant run --engine ray`` on a real cluster of several nodes, all on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.helpers.tiny_job import contents

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).parents[2]
RECIPE = """
models = ["a", "b", "c"]
output = "out"
samples = {samples}
seq_len = 64
eval_windows = 1
eval_slices = ["english"]

[[jobs]]
quantizer = "awq"

[[jobs]]
quantizer = "gguf"
type = ["Q4_0", "Q8_0"]
"""
FOLDERS = {f"{m}-{kind}" for m in "abc" for kind in ("awq-w4-g128", "gguf-Q4_0", "gguf-Q8_0")}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that takes no task, and two nodes that take one each."""
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(ROOT))
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    yield made
    made.shutdown()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Three tiny models and a recipe; return their folder."""
    for seed, name in enumerate("abc"):
        write_tiny_gemma(tmp_path / name, "gemma2", seed=seed, overrides=LLAMACPP["gemma2"])
    (tmp_path / "recipe.toml").write_text(RECIPE.format(samples=2), encoding="utf-8")
    return tmp_path


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gemquant", "run", "recipe.toml", "--threads", "1", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def test_a_cluster_makes_what_one_machine_makes_and_a_lost_node_loses_nothing(
    cluster: Any, models: Path
) -> None:
    """Bytes are equal, no folder is missing, none is left over or made twice."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    assert ended(started(models, "-o", "here"))[0] == 0
    process = started(models, "--engine", "ray", "--address", cluster.address)
    deadline = time.monotonic() + 200
    while not list(models.glob("out/.*.partial")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    cluster.remove_node(nodes[0], allow_graceful=False)
    code, _, err = ended(process)
    assert code == 0, err
    assert {path.name for path in (models / "out").iterdir()} == FOLDERS
    for name in FOLDERS:
        assert contents(models / "out" / name) == contents(models / "here" / name), name


def test_what_no_node_can_hold_is_refused_at_once(cluster: Any, models: Path) -> None:
    cluster.add_node(num_cpus=1)
    process = started(models, "--engine", "ray", "--address", cluster.address, "--threads", "7")
    code, _, err = ended(process)
    assert code == 2
    assert "takes 7 processors (--threads)" in err
    assert "The most that a node has: 1 processors (--threads)" in err


def test_a_model_that_fails_on_its_node_stops_no_other(cluster: Any, models: Path) -> None:
    """The second model's weights become NaN after the check of the headers."""
    from safetensors.torch import load_file, save_file

    cluster.add_node(num_cpus=1)
    weights = models / "b" / "model.safetensors"
    tensors = load_file(weights)
    name = next(each for each in tensors if each.endswith("1.input_layernorm.weight"))
    tensors[name][0] = float("nan")
    save_file(tensors, weights)
    process = started(models, "--engine", "ray", "--address", cluster.address, "--json")
    code, out, err = ended(process)
    assert code == 3
    assert "b, awq" in err
    assert name in err
    assert {path.name for path in (models / "out").iterdir() if path.name[0] != "b"} == {
        name for name in FOLDERS if name[0] != "b"
    }
    assert out == ""


def test_a_cluster_that_does_not_answer_is_named(models: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    code, _, err = ended(started(models, "--engine", "ray", "--address", "127.0.0.1:1"))
    assert code == 2
    assert "--address 127.0.0.1:1: no Ray cluster answers" in err


def test_an_address_is_for_a_cluster(models: Path) -> None:
    code, _, err = ended(started(models, "--address", "127.0.0.1:1", "--dry-run"))
    assert (code, err.splitlines()[-1]) == (2, "error: --address 127.0.0.1:1: needs --engine ray.")


def test_without_ray_the_extra_is_named(models: Path) -> None:
    if find_spec("ray") is not None:
        pytest.skip("Ray is installed")
    code, _, err = ended(started(models, "--engine", "ray"))
    assert (code, "pip install 'gemquant[ray]'" in err) == (8, True)
