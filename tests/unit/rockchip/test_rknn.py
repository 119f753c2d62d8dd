"""Blocks for rknn-toolkit2's simulator, and what is asked of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gemquant.core.protocols import Silence
from gemquant.errors import RuntimeMissingError, UsageError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.rockchip.programs import rknn_simulate
from gemquant.rockchip.rknn import chosen_layers, rknn_interpreter, write_blocks
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma

TOKENS = 20


def blocks(tmp_path: Path, kind: Kind, layers: list[int]) -> list[dict[str, Any]]:
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    tmp_path.mkdir(exist_ok=True)
    checkpoint = open_checkpoint(str(write_tiny_gemma(tmp_path / "model", kind)))
    ids = torch.randint(5, 200, (4, TOKENS), generator=torch.Generator().manual_seed(0))
    return write_blocks(
        checkpoint,
        layers,
        calibration=ids[:3],
        compared=ids[3:],
        folder=tmp_path / "blocks",
        progress=Silence(),
    )


def test_a_traced_block_computes_what_the_library_computes(
    tmp_path: Path, generation: Kind
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    written = blocks(tmp_path, generation, [0, 1])
    assert [block["layer"] for block in written] == [0, 1]
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    skeleton = Skeleton(checkpoint.config)
    for block in written:
        given, expected = np.load(block["input"]), np.load(block["expected"])
        session = onnxruntime.InferenceSession(block["model"], providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == [1, TOKENS, 128]
        (traced,) = session.run(None, {"hidden": given})
        names = layer_parameters(checkpoint.config, block["layer"])
        prefix = f"model.layers.{block['layer']}."
        weights = {name: checkpoint.tensor(prefix + name, torch.float32) for name in names}
        library = skeleton.layer(block["layer"], weights, torch.from_numpy(given)).numpy()
        assert np.linalg.norm(traced - library) < 2e-4 * np.linalg.norm(library)
        assert np.linalg.norm(expected - library) < 1e-5 * np.linalg.norm(library)


def test_the_mask_is_the_mildest_that_changes_nothing(tmp_path: Path) -> None:
    (softcapped,) = blocks(tmp_path / "2", "gemma2", [1])
    (loud,) = blocks(tmp_path / "3", "gemma3_text", [0])
    assert softcapped["mask"] == -60.0
    # The gains of this model's query and key norms have outliers.
    assert loud["mask"] < -60.0


def test_a_block_is_calibrated_with_other_windows_than_it_is_judged_by(tmp_path: Path) -> None:
    (block,) = blocks(tmp_path, "gemma2", [1])
    listed = Path(block["dataset"]).read_text().splitlines()
    assert len(listed) == 3
    assert block["input"] not in listed
    assert all(np.load(file).shape == (1, TOKENS, 128) for file in listed)


class Toolkit:
    """Returns what a test says: statuses by function, and one output."""

    statuses: dict[str, int] = {}  # noqa: RUF012 (replaced by each test)
    output: Any = None

    def __init__(self, **_verbosity: bool) -> None:
        self.build = lambda **_asked: self.statuses.get("build", 0)
        self.config = self.load_onnx = self.init_runtime = lambda *_args, **_asked: 0
        self.inference = lambda _inputs: [self.output]
        self.release = lambda: None


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(sys.modules, "rknn.api", SimpleNamespace(RKNN=Toolkit))  # type: ignore[arg-type]
    monkeypatch.setattr(rknn_simulate.metadata, "version", lambda _name: "2.5.0")
    np.save(tmp_path / "input.npy", np.full((1, 2, 2), 1.0, np.float32))
    np.save(tmp_path / "expected.npy", np.full((1, 2, 2), 11.0, np.float32))
    files = {name: str(tmp_path / f"{name}.npy") for name in ("input", "expected")}
    return {
        "platform": "rk3588",
        "blocks": [{"layer": 3, "mask": -60.0, "model": "", "dataset": "", **files}],
    }


def test_decibels_are_of_the_output_and_of_what_is_added(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toolkit, "output", np.full((1, 4), 11.1, np.float32))
    (block,) = rknn_simulate.run(job, lambda _event: None)["blocks"]
    assert block["layer"] == 3
    # 20 log10(11 / 0.1) and 20 log10(10 / 0.1).
    assert block["int8"]["output_db"] == pytest.approx(40.828, abs=1e-2)
    assert block["int8"]["update_db"] == pytest.approx(40.0, abs=1e-2)


def test_an_output_that_is_not_finite_has_no_decibels(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toolkit, "output", np.full((1, 4), np.nan, np.float32))
    (block,) = rknn_simulate.run(job, lambda _event: None)["blocks"]
    assert block["float16"] == {"output_db": None, "update_db": None}


def test_a_status_that_is_not_0_ends_the_simulation(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toolkit, "statuses", {"build": -1})
    with pytest.raises(RuntimeError, match="build returned -1, not 0"):
        rknn_simulate.run(job, lambda _event: None)


@pytest.mark.parametrize("asked", ["26", "-1", "0,x", ""])
def test_layers_that_are_none_are_refused(asked: str) -> None:
    with pytest.raises(UsageError, match="is none of 0 to 25"):
        chosen_layers(asked, 26)


def test_a_python_without_the_toolkit_is_told_how_to_get_it() -> None:
    with pytest.raises(RuntimeMissingError) as raised:
        rknn_interpreter(sys.executable)
    assert "rknn-toolkit2 is not installed in it" in raised.value.message
    assert "pip install --no-deps rknn-toolkit2==2.5.0" in str(raised.value.hint)
    with pytest.raises(UsageError, match="--python: missing"):
        rknn_interpreter(None)
