"""Whole files are those of llama.cpp's two steps: its converter to BF16, then its quantizer.

The quantizer is installed by `ci/bench/llama_quantize.py`'s command. $LLAMA_CPP is a folder of
llama.cpp's sources, $LLAMA_CPP_PYTHON a Python with what its converter imports.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from ci.bench.llama_quantize import Llama, QuantizeOptions, read_importance
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.gguf.imatrix import ImportanceEntry, ImportanceMatrix, write_imatrix
from gemquant.formats.gguf.mixtures import FILE_TYPES
from gemquant.formats.gguf.types import TypeRequest, choose_types
from tests.helpers.tiny_gemma import GEMMA4, GENERATIONS, NESTED, Kind
from tests.helpers.tiny_multimodal import write_convertible_multimodal
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


@pytest.fixture(scope="module", params=(*GENERATIONS, *GEMMA4, "embedding"))
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@pytest.fixture(scope="module")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_convertible_gemma(tmp_path_factory.mktemp("model"), kind, WIDE)


@pytest.fixture(scope="module")
def plain(kind: Kind) -> str:
    """The type that the converter loses nothing in: Dense modules are stored in float32."""
    return "f32" if kind == "embedding" else "bf16"


Convert = Callable[..., Path]


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """A folder as llama.cpp's converter writes it, in bf16 or f16."""
    sources = os.environ.get("LLAMA_CPP")
    if sources is None:
        pytest.skip("$LLAMA_CPP names no folder of llama.cpp's sources")
    python = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
    converter, root = Path(sources) / "convert_hf_to_gguf.py", tmp_path_factory.mktemp("converted")

    def converted(model: Path, kind: str, *flags: str, dense: bool = True) -> Path:
        flags += ("--sentence-transformers-dense-modules",) if dense else ()
        out = root / f"{str(model).replace('/', '_')}-{kind}-{len(flags)}.gguf"
        if not out.exists():
            command = [python, converter, model, "--outtype", kind, "--outfile", out, *flags]
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
        return out

    return converted


@pytest.mark.parametrize("type_", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("kind_", NESTED)
def test_towers_have_every_byte_of_llama_cpps_converter(
    run: Run, convert: Convert, kind_: Kind, type_: str, tmp_path: Path
) -> None:
    model, out = write_convertible_multimodal(tmp_path, kind_), tmp_path / "out"
    assert run("gguf", str(model), "--no-eval", "--mmproj", type_, "-o", str(out)).code == 0
    theirs = convert(model, type_.lower(), "--mmproj")
    assert filecmp.cmp(out / f"mmproj-{model.name}-{type_}.gguf", theirs, shallow=False)


def test_every_byte_is_that_of_llama_cpps_two_steps(
    run: Run, llama: Llama, model: Path, convert: Convert, plain: str, tmp_path: Path
) -> None:
    flags = [part for name in TYPES for part in ("--type", name)]
    assert run("gguf", str(model), *flags, "--no-eval", "-o", "ours").code == 0
    for name in TYPES:
        # What no file quantizes stays as it was converted: of a file in F16 in that type.
        source = convert(model, "f16" if name == "F16" else plain)
        llama.quantize(source, tmp_path / "theirs.gguf", name, QuantizeOptions())
        (ours,) = (tmp_path / "ours" / name).glob("tiny-*.gguf")
        assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), name


def test_an_embedding_model_without_dense_modules_is_llama_cpps(
    run: Run, llama: Llama, convert: Convert, tmp_path: Path
) -> None:
    model = write_convertible_gemma(tmp_path / "embedding", "embedding", WIDE)
    flags = ["--type", "Q4_K_M", "--no-dense-modules", "--no-eval"]
    assert run("gguf", str(model), *flags, "-o", "ours").code == 0
    llama.quantize(
        convert(model, "f32", dense=False), tmp_path / "theirs.gguf", "Q4_K_M", QuantizeOptions()
    )
    (ours,) = (tmp_path / "ours").glob("*.gguf")
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_tensors_weighed_by_our_importance_matrix_are_llama_cpps(
    run: Run, llama: Llama, kind: Kind, model: Path, convert: Convert, plain: str, tmp_path: Path
) -> None:
    few = ["--samples", "2", "--seq-len", "32"]
    assert run("imatrix", str(model), *few, "-o", "im.gguf").code == 0
    importance = read_importance(tmp_path / "im.gguf")
    # No importance matrix is of Dense modules, and Q2_K_S needs one for every matrix.
    types = ("Q4_K_M",) if kind == "embedding" else ("Q4_K_M", "Q2_K_S")
    flags = [*(part for name in types for part in ("--type", name)), "--importance", *few]
    assert run("gguf", str(model), *flags, "--no-eval", "-o", "ours").code == 0
    for name in types:
        target = tmp_path / "theirs.gguf"
        llama.quantize(convert(model, plain), target, name, QuantizeOptions(), importance)
        (path,) = (tmp_path / "ours").rglob(f"*{name}.gguf")
        theirs = gguf.GGUFReader(target).tensors
        for ours, expected in zip(gguf.GGUFReader(path).tensors, theirs, strict=True):
            assert ours.name == expected.name
            assert np.array_equal(ours.data, expected.data), ours.name


def test_experts_weighed_by_a_file_are_llama_cpps(
    run: Run, llama: Llama, convert: Convert, tmp_path: Path
) -> None:
    model = write_convertible_gemma(tmp_path / "experts", "gemma4_moe", WIDE)
    source, drawn = convert(model, "bf16"), np.random.default_rng(0)
    entries = {}
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            experts = int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
            sums = 10 * drawn.random(int(tensor.shape[0]) * experts) ** 3
            counts = (0, *range(3, 2 + experts)) if experts > 1 else (7,)
            values = torch.from_numpy(sums.astype(np.float32))
            entries[tensor.name] = ImportanceEntry(values, counts)
    write_imatrix(tmp_path / "im.gguf", ImportanceMatrix(entries, ("text",), 1, 7))
    importance = read_importance(tmp_path / "im.gguf")
    flags = ["--type", "Q4_K_M", "--type", "Q8_0", "--imatrix", "im.gguf", "--no-eval"]
    assert run("gguf", str(model), *flags, "-o", "ours").code == 0
    for name in ("Q4_K_M", "Q8_0"):
        llama.quantize(source, tmp_path / "theirs.gguf", name, QuantizeOptions(), importance)
        (path,) = (tmp_path / "ours" / name).glob("tiny-*.gguf")
        theirs = gguf.GGUFReader(tmp_path / "theirs.gguf").tensors
        for ours, expected in zip(gguf.GGUFReader(path).tensors, theirs, strict=True):
            assert ours.name == expected.name
            assert np.array_equal(ours.data, expected.data), ours.name


def test_a_wide_per_layer_embedding_in_llama_cpps_type_has_its_bytes(
    run: Run, llama: Llama, convert: Convert, tmp_path: Path
) -> None:
    changes = {**WIDE, "hidden_size_per_layer_input": 256}
    model = write_convertible_gemma(tmp_path / "wide", "gemma4_e", changes)
    flags = ["--type", "Q4_K_M", "--per-layer-embedding-type", "Q6_K", "--no-eval"]
    assert run("gguf", str(model), *flags, "-o", "ours").code == 0
    llama.quantize(convert(model, "bf16"), tmp_path / "theirs.gguf", "Q4_K_M", QuantizeOptions())
    (ours,) = (tmp_path / "ours").glob("tiny-*.gguf")
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("source", ["Q8_0", "Q4_K_M"])
def test_quantizing_again_gives_llama_cpps_bytes(
    run: Run, llama: Llama, model: Path, tmp_path: Path, source: str
) -> None:
    assert run("gguf", str(model), "--type", source, "--no-eval", "-o", "first").code == 0
    (first,) = (tmp_path / "first").glob("tiny-*.gguf")
    assert run("gguf", str(first), "--type", "Q5_K_M", "--no-eval", "-o", "again").code == 0
    options = QuantizeOptions(allow_requantize=True)
    llama.quantize(first, tmp_path / "theirs.gguf", "Q5_K_M", options)
    (again,) = (tmp_path / "again").glob("tiny-*.gguf")
    assert again.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("experts", [8, 16])
def test_types_of_a_model_with_eight_experts_or_more_are_llama_cpps(
    run: Run, llama: Llama, tmp_path: Path, experts: int
) -> None:
    sizes = {**WIDE, "num_experts": experts}
    model = write_convertible_gemma(tmp_path / "experts", "gemma4_moe", sizes)
    out = tmp_path / "out"
    assert run("gguf", str(model), "--type", "BF16", "--no-eval", "-o", str(out)).code == 0
    (source,), config = out.glob("tiny-*.gguf"), open_checkpoint(str(model)).config
    for name, file_type in FILE_TYPES.items():
        if name == "Q2_K_S":  # only with an importance matrix
            continue
        llama.quantize(source, tmp_path / "theirs.gguf", name, QuantizeOptions())
        theirs = {
            tensor.name: tensor.tensor_type.name
            for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors
        }
        plan = choose_types(config, TypeRequest(file_type), has_importance=False)
        assert {tensor.name: tensor.type.name for tensor in plan.tensors} == theirs, name


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
        (ours,) = (tmp_path / "ours" / name).glob("tiny-*.gguf")
        assert filecmp.cmp(ours, tmp_path / "theirs.gguf", shallow=False), name
