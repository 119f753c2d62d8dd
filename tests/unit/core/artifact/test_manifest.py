from __future__ import annotations

import json
import math
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
from pydantic import ValidationError

from gemquant.core.artifact import (
    ActivationRange,
    CalibrationRecord,
    Fallback,
    Manifest,
    certificate_record,
    quantization_record,
    seal,
)
from gemquant.core.results import Certificate, Measurement, SliceResult
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_artifact import W4, W4_SYMMETRIC, tiny_header, tiny_manifest

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    loader = SourceFileLoader("docs_manifest", str(ROOT / "ci" / "docs-manifest"))
    module = ModuleType("docs_manifest")
    module.__file__ = loader.path
    loader.exec_module(module)
    return module


def certificate(divergence: float = 0.12) -> Certificate:
    result = SliceResult(
        slice="english",
        windows=8,
        tokens=4088,
        perplexity_original=Measurement(19.25, 1.5),
        perplexity_quantized=Measurement(21.5, 1.75),
        kl_mean=Measurement(divergence, 0.01),
        kl_p999=Measurement(3.5, 0.5),
        top1_agreement=Measurement(0.8125, 0.0),
    )
    return Certificate("reference", "torch 2.13.0", [result], token_stream="sha256:00")


def full_manifest() -> Manifest:
    """A manifest with every optional part filled."""
    return tiny_manifest(tiny_header(CompressedTensors()), "compressed-tensors").model_copy(
        update={
            "certificates": (certificate_record(certificate()),),
            "calibration": CalibrationRecord(
                name="general", windows=16, seq_len=512, digest="sha256:00"
            ),
            "activation_range": ActivationRange(largest=71.5, where="model", fits_float16=True),
            "fallbacks": (Fallback(module="m", stored="bfloat16", reason="width 100"),),
        }
    )


def test_a_sealed_manifest_satisfies_the_published_schema(tmp_path: Path) -> None:
    seal(tmp_path, full_manifest())
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads((tmp_path / "manifest.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)


def test_the_published_schema_refuses_an_unknown_key() -> None:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    document = {**json.loads(full_manifest().to_json()), "colour": "blue"}
    with pytest.raises(jsonschema.ValidationError, match="'colour' was unexpected"):
        jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("name", ["manifest.md", "manifest.schema.json"])
def test_the_documents_are_those_that_the_program_writes(generator: ModuleType, name: str) -> None:
    written = {
        "manifest.md": generator.markdown_text,
        "manifest.schema.json": generator.schema_text,
    }
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == written[name](), (
        "run: ci/docs-manifest"
    )


def test_the_json_is_indented_unescaped_and_ends_with_a_newline() -> None:
    manifest = full_manifest().model_copy(update={"recipe": {"model": "Gemma à la carte"}})
    text = manifest.to_json().decode()
    assert text.startswith('{\n  "schema_version": 1,\n  "container": "compressed-tensors",\n')
    assert '"model": "Gemma à la carte"' in text
    assert text.endswith("}\n")


def test_a_certificate_is_recorded_unrounded() -> None:
    record = certificate_record(certificate(divergence=0.1 + 0.2))
    assert record.slices[0].kl_mean.value == 0.30000000000000004


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        certificate_record(certificate(divergence=value))


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        full_manifest().license = "mit"


def test_quantization_lists_modules_by_scheme() -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    header = tiny_header(CompressedTensors(), scheme=W4, schemes={name: W4_SYMMETRIC})
    record = quantization_record("rtn", header.layout, float_dtype="bfloat16", file_bytes=9)
    found = [(s.bits, s.group_size, s.symmetric, len(s.modules)) for s in record.schemes]
    assert found == [(4, 32, True, 1), (4, 128, False, 20)]
    assert record.unquantized == ("model.embed_tokens",)


def test_bits_per_weight_count_every_weight_once() -> None:
    header = tiny_header(CompressedTensors(), tied=False)
    weights = sum(math.prod(spec.shape) for spec in header.layout.values())
    record = quantization_record("rtn", header.layout, float_dtype="x", file_bytes=weights)
    assert record.bits_per_weight == 8.0
