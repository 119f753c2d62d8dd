"""Whole files are those of llama.cpp's two steps: its converter to BF16, then its quantizer.

The quantizer is installed by `ci/bench/llama_quantize.py`'s command. $LLAMA_CPP is a folder of
llama.cpp's sources, $LLAMA_CPP_PYTHON a Python with what its converter imports.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from ci.bench.llama_quantize import Llama, QuantizeOptions, read_importance
from tests.helpers.tiny_gemma import GENERATIONS, Kind
from tests.helpers.tiny_sentencepiece import write_convertible_gemma
from tests.unit.cli.conftest import Run

pytestmark = pytest.mark.peer

TYPES = ("F16", "Q8_0", "Q4_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K", "IQ4_XS")
WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture(scope="module")
def llama() -> Llama:
    try:
        return Llama()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=GENERATIONS)
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@pytest.fixture(scope="module")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_convertible_gemma(tmp_path_factory.mktemp("model"), kind, WIDE)


@pytest.fixture(scope="module")
def converted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as llama.cpp's converter writes it."""
    sources = os.environ.get("LLAMA_CPP")
    if sources is None:
        pytest.skip("$LLAMA_CPP names no folder of llama.cpp's sources")
    out = tmp_path_factory.mktemp("converted") / "bf16.gguf"
    python = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
    converter = Path(sources) / "convert_hf_to_gguf.py"
    command = [python, converter, model, "--outtype", "bf16", "--outfile", out]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


def test_every_byte_is_that_of_llama_cpps_two_steps(
    run: Run, llama: Llama, model: Path, converted: Path, tmp_path: Path
) -> None:
    flags = [part for name in TYPES for part in ("--type", name)]
    assert run("gguf", str(model), *flags, "--no-eval", "-o", "ours").code == 0
    for name in TYPES:
        llama.quantize(converted, tmp_path / "theirs.gguf", name, QuantizeOptions())
        (ours,) = (tmp_path / "ours" / name).glob("*.gguf")
        assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), name


def test_tensors_weighed_by_our_importance_matrix_are_llama_cpps(
    run: Run, llama: Llama, model: Path, converted: Path, tmp_path: Path
) -> None:
    few = ["--samples", "2", "--seq-len", "32"]
    assert run("imatrix", str(model), *few, "-o", "im.gguf").code == 0
    importance = read_importance(tmp_path / "im.gguf")
    flags = ["--type", "Q4_K_M", "--type", "Q2_K_S", "--importance", *few, "--no-eval"]
    assert run("gguf", str(model), *flags, "-o", "ours").code == 0
    for name in ("Q4_K_M", "Q2_K_S"):
        target = tmp_path / "theirs.gguf"
        llama.quantize(converted, target, name, QuantizeOptions(), importance)
        (path,) = (tmp_path / "ours" / name).glob("*.gguf")
        theirs = gguf.GGUFReader(target).tensors
        for ours, expected in zip(gguf.GGUFReader(path).tensors, theirs, strict=True):
            assert ours.name == expected.name
            assert np.array_equal(ours.data, expected.data), ours.name


@pytest.mark.parametrize("source", ["Q8_0", "Q4_K_M"])
def test_quantizing_again_gives_llama_cpps_bytes(
    run: Run, llama: Llama, model: Path, tmp_path: Path, source: str
) -> None:
    assert run("gguf", str(model), "--type", source, "--no-eval", "-o", "first").code == 0
    (first,) = (tmp_path / "first").glob("*.gguf")
    assert run("gguf", str(first), "--type", "Q5_K_M", "--no-eval", "-o", "again").code == 0
    options = QuantizeOptions(allow_requantize=True)
    llama.quantize(first, tmp_path / "theirs.gguf", "Q5_K_M", options)
    (again,) = (tmp_path / "again").glob("*.gguf")
    assert again.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.real
def test_the_sample_model_quantized_again_gives_llama_cpps_bytes(
    run: Run, llama: Llama, tmp_path: Path
) -> None:
    from gemquant.formats.checkpoint.sample import assembled, sample_named

    source = assembled(sample_named("gemma-3-270m"))
    flags = ["--type", "Q4_K_M", "--type", "Q5_K_M", "--no-eval", "-o", "ours"]
    assert run("gguf", "sample:gemma-3-270m", *flags).code == 0
    for name in ("Q4_K_M", "Q5_K_M"):
        options = QuantizeOptions(threads=2, allow_requantize=True)
        llama.quantize(source, tmp_path / "theirs.gguf", name, options)
        (ours,) = (tmp_path / "ours" / name).glob("*.gguf")
        assert filecmp.cmp(ours, tmp_path / "theirs.gguf", shallow=False), name
