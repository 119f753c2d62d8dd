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
    ActivationRangeRecord,
    CalibrationRecord,
    Fallback,
    LevelEvaluation,
    Manifest,
    finalize,
    quantization_record,
)
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_artifact import W4, W4_SYMMETRIC, tiny_header, tiny_manifest
from tests.helpers.tiny_evaluation import measured_slice

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    loader = SourceFileLoader("docs_manifest", str(ROOT / "ci" / "docs-manifest"))
    module = ModuleType("docs_manifest")
    module.__file__ = loader.path
    loader.exec_module(module)
    return module


def certificate(divergence: float = 0.12) -> LevelEvaluation:
    loss = measured_slice("english", kl=[divergence] * 8)
    return LevelEvaluation(level="reference", runtime="torch 2.13.0", slices=(loss,))


def full_manifest() -> Manifest:
    """A manifest with every optional part filled."""
    return tiny_manifest(tiny_header(CompressedTensors()), "compressed-tensors").model_copy(
        update={
            "certificates": (certificate(),),
            "calibration": CalibrationRecord(
                name="general", windows=16, seq_len=512, digest="sha256:00"
            ),
            "activation_range": ActivationRangeRecord(
                largest=71.5, where="model", fits_float16=True
            ),
            "fallbacks": (Fallback(module="m", stored="bfloat16", reason="width 100"),),
        }
    )


def test_a_sealed_manifest_satisfies_the_published_schema(tmp_path: Path) -> None:
    finalize(tmp_path, full_manifest())
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
    assert text.startswith('{\n  "schema_version": 2,\n  "container": "compressed-tensors",\n')
    assert '"model": "Gemma à la carte"' in text
    assert text.endswith("}\n")


def test_a_certificate_is_recorded_unrounded() -> None:
    text = full_manifest().model_copy(update={"certificates": (certificate(0.1 + 0.2),)}).to_json()
    assert b"0.30000000000000004" in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        certificate(divergence=value)


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


# ---------------------------------------------------------------- manifests of version 1

OLD = ROOT / "tests" / "golden" / "manifest_v1.json"
"""Of `gemquant rtn` on a tiny random Gemma 3 with three windows, before version 2."""


def test_a_manifest_of_version_1_is_read_with_intervals_from_its_standard_errors() -> None:
    manifest = Manifest.model_validate_json(OLD.read_bytes())
    assert manifest.schema_version == 2
    (level,) = manifest.certificates
    assert (level.level, level.runtime) == ("reference", "torch 2.13.0; float32 on cpu")
    (loss,) = level.slices
    assert (loss.slice, loss.windows.tokens, loss.seq_len) == ("english", (15, 15, 15), 16)
    # t of two degrees of freedom is 4.3027; the error was 0.3133.
    assert loss.kl_mean.value == 1.685248668848921
    assert (loss.kl_mean.low, loss.kl_mean.high) == pytest.approx((0.337, 3.033), abs=2e-3)
    assert loss.nll_increase is None
    assert loss.windows.kl_mean == ()


def test_an_agreement_of_version_1_ends_at_one() -> None:
    document = json.loads(OLD.read_bytes())
    agreement = document["certificates"][0]["slices"][0]["top1_agreement"]
    agreement |= {"value": 0.9, "standard_error": 0.1}
    (level,) = Manifest.model_validate(document).certificates
    assert level.slices[0].top1.high == 1.0


def test_a_window_that_stood_alone_in_version_1_has_no_interval() -> None:
    document = json.loads(OLD.read_bytes())
    document["certificates"][0]["slices"][0]["windows"] = 1
    (level,) = Manifest.model_validate(document).certificates
    assert level.slices[0].kl_mean.low == level.slices[0].kl_mean.high


@pytest.mark.parametrize("certificates", [5, [{"level": "reference"}], [{"runtime": 1}]])
def test_a_malformed_certificate_of_version_1_is_refused(certificates: object) -> None:
    document = {**json.loads(OLD.read_bytes()), "certificates": certificates}
    with pytest.raises(ValidationError):
        Manifest.model_validate(document)


def test_a_manifest_of_version_1_is_written_as_version_2_and_read_again() -> None:
    manifest = Manifest.model_validate_json(OLD.read_bytes())
    assert Manifest.model_validate_json(manifest.to_json()) == manifest
