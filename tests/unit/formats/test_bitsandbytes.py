"""bitsandbytes checkpoints: what goes in comes out, and transformers loads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from gemquant.core.protocols import ArtifactHeader, Exporter, QuantizedSpec, Scheme
from gemquant.core.weights import (
    CodebookScheme,
    CodebookWeight,
    RowwiseScheme,
    RowwiseWeight,
)
from gemquant.errors import ArtifactError, UnsupportedError
from gemquant.formats.awq_gemm import AwqGemm
from gemquant.formats.bitsandbytes import BitsAndBytes
from gemquant.formats.compressed_tensors import CompressedTensors
from gemquant.models.structure import EMBEDDING
from tests.helpers.tiny_artifact import tiny_header
from tests.helpers.tiny_gemma import Kind, tiny_tensors

NESTED = CodebookScheme("nf4", 64, nested=True)
SCHEMES: dict[str, Scheme] = {
    "int8": RowwiseScheme(6.0),
    "nf4": CodebookScheme("nf4", 64, nested=False),
    "nf4-nested": NESTED,
    "nf4-large": CodebookScheme("nf4", 4096, nested=True),
    "fp4": CodebookScheme("fp4", 128, nested=True, compute_dtype="float32"),
    "bf16-storage": CodebookScheme("nf4", 64, nested=True, storage_dtype="bfloat16"),
}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return SCHEMES[request.param]


def header(scheme: Scheme, kind: Kind = "gemma2", *, plain: str = "") -> ArtifactHeader:
    made = tiny_header(BitsAndBytes(), kind, schemes={plain: None} if plain else None)
    layout = {
        name: replace(spec, scheme=scheme) if isinstance(spec, QuantizedSpec) else spec
        for name, spec in made.layout.items()
    }
    return ArtifactHeader(made.config, layout)


def quantized(weight: Tensor, scheme: Scheme) -> CodebookWeight | RowwiseWeight:
    if isinstance(scheme, RowwiseScheme):
        return RowwiseWeight.of(weight, scheme)
    assert isinstance(scheme, CodebookScheme)
    return CodebookWeight.of(weight, scheme)


def write(
    folder: Path, made: ArtifactHeader, exporter: Exporter | None = None
) -> dict[str, Tensor]:
    """Write a tiny Gemma; return what a reader must see, float32."""
    exporter = exporter or BitsAndBytes()
    decoded = {}
    with exporter.create(folder, made) as writer:
        for name, tensor in tiny_tensors(made.config).items():
            spec = made.layout[name]
            if isinstance(spec, QuantizedSpec):
                weight = quantized(tensor, spec.scheme)
                decoded[name] = weight.dequantize()
                writer.write({name: weight})
            else:
                decoded[name] = tensor.float()
                writer.write({name: tensor})
        (folder / "config.json").write_text(json.dumps(writer.finish()))
    return decoded


def test_every_tensor_reads_back_as_it_was_written(
    tmp_path: Path, scheme: Scheme, generation: Kind
) -> None:
    decoded = write(tmp_path, header(scheme, generation))
    weights = BitsAndBytes().open(tmp_path)
    for name, value in decoded.items():
        assert torch.equal(weights.tensor(name, torch.float32), value), name


def test_the_scheme_reads_back_as_it_was(tmp_path: Path, scheme: Scheme) -> None:
    made = header(scheme)
    write(tmp_path, made)
    assert BitsAndBytes().open(tmp_path).layout == made.layout


def test_rows_are_those_of_the_whole(tmp_path: Path, scheme: Scheme) -> None:
    decoded = write(tmp_path, header(scheme))
    weights = BitsAndBytes().open(tmp_path)
    for name in (EMBEDDING, Q_PROJ):
        assert torch.equal(weights.rows(name, 3, 50, torch.float32), decoded[name][3:50])


@pytest.mark.parametrize("limit", [100_000, 10**9], ids=["sharded", "whole"])
def test_file_sizes_are_exact(tmp_path: Path, scheme: Scheme, limit: int) -> None:
    made, exporter = header(scheme), BitsAndBytes(max_shard_bytes=limit)
    write(tmp_path, made, exporter)
    (tmp_path / "config.json").unlink()
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert found == exporter.file_sizes(made)


def test_the_configuration_is_complete(tmp_path: Path) -> None:
    write(tmp_path, header(NESTED, plain=Q_PROJ))
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": ["lm_head", "model.layers.0.self_attn.q_proj"],
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def test_a_layer_left_out_reads_back(tmp_path: Path) -> None:
    write(tmp_path, header(RowwiseScheme(6.0), plain=Q_PROJ))
    assert BitsAndBytes().open(tmp_path).stored_dtype(Q_PROJ) == torch.bfloat16


def test_int8_tensors_have_the_names_that_transformers_looks_up(tmp_path: Path) -> None:
    write(tmp_path, header(RowwiseScheme(6.0)))
    module = Q_PROJ.removesuffix(".weight")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        found = {n.removeprefix(f"{module}.") for n in file.keys() if n.startswith(module)}  # noqa: SIM118
    assert found == {"weight", "SCB", "weight_format"}


def test_integer_codes_are_refused() -> None:
    (problem,) = BitsAndBytes().problems(tiny_header(BitsAndBytes()))
    assert "stores LLM.int8, NF4 and FP4; asked for 4 bits, groups of 128" in problem.message


@pytest.mark.parametrize("exporter", [AwqGemm(), CompressedTensors()], ids=lambda e: e.name)
def test_other_containers_refuse_a_codebook(exporter: Exporter) -> None:
    (problem, *_rest) = exporter.problems(header(NESTED))
    assert "stores integer codes; asked for 4 bits NF4, groups of 64" in problem.message


def test_codes_that_do_not_fill_the_storage_type_are_refused() -> None:
    scheme = CodebookScheme("nf4", 64, nested=True, storage_dtype="float32")
    made = ArtifactHeader({}, {"a.weight": QuantizedSpec((3, 4), scheme)})
    (problem,) = BitsAndBytes().problems(made)
    assert "leaves a remainder in a (3, 4)" in problem.message


def test_weights_beyond_float16_are_refused_by_int8(tmp_path: Path) -> None:
    scheme = RowwiseScheme(6.0)
    weight = RowwiseWeight.of(torch.full((256, 128), 70000.0), scheme)
    with (
        BitsAndBytes().create(tmp_path, header(scheme)) as writer,
        pytest.raises(UnsupportedError, match="beyond what its scales can hold"),
    ):
        writer.write({Q_PROJ: weight})


def test_a_weight_that_is_not_as_announced_is_refused(tmp_path: Path) -> None:
    weight = CodebookWeight.of(torch.zeros(256, 128), CodebookScheme("nf4", 128, nested=True))
    with (
        BitsAndBytes().create(tmp_path, header(NESTED)) as writer,
        pytest.raises(ValueError, match="announced as"),
    ):
        writer.write({Q_PROJ: weight})


@pytest.mark.parametrize("key", ["bnb_4bit_quant_type", "quant_method"])
def test_an_artifact_that_is_not_quantized_as_it_says_is_not_opened(
    tmp_path: Path, key: str
) -> None:
    write(tmp_path, header(NESTED))
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"][key] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=f"{key} is 'gptq'"):
        BitsAndBytes().open(tmp_path)
