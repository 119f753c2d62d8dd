"""What a certificate looks like in a terminal, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.cli import plan_tables, render
from gemquant.core.artifact import (
    ActivationRange,
    Artifact,
    FileRecord,
    Manifest,
    Quantization,
    SchemeRecord,
    Source,
    certificate_record,
)
from gemquant.core.recipe import Recipe
from gemquant.core.results import Certificate, Measurement, SliceResult

LOSS = SliceResult(
    slice="english",
    windows=4,
    tokens=2044,
    perplexity_original=Measurement(18.1234, 0.5),
    perplexity_quantized=Measurement(20.9876, 0.6),
    kl_mean=Measurement(0.12345, 0.00678),
    kl_p999=Measurement(2.3456, 0.1234),
    top1_agreement=Measurement(0.8765, 0.0123),
)


@pytest.fixture
def artifact() -> Artifact:
    certificates = (
        Certificate(level="reference", runtime="torch 2.13.0", slices=(LOSS,)),
        Certificate(level="native", runtime="transformers", not_run="accelerate is missing"),
    )
    manifest = Manifest(
        container="compressed-tensors",
        architecture="gemma3_text",
        base_model="google/gemma-3-270m",
        source=Source(ref="sample:gemma-3-270m", files={}),
        recipe=Recipe(model="sample:gemma-3-270m", quantizer="awq").to_dict(),
        quantization=Quantization(
            quantizer="awq",
            schemes=(
                SchemeRecord(bits=4, group_size=128, symmetric=False, modules=("a", "b", "c")),
            ),
            unquantized=("model.embed_tokens",),
            float_dtype="bfloat16",
            bits_per_weight=11.8349,
        ),
        activation_range=ActivationRange(
            largest=123456.0, where="layers.3.mlp.down_proj", fits_float16=False
        ),
        certificates=tuple(map(certificate_record, certificates)),
        libraries={},
        files={"model.safetensors": FileRecord(sha256="0" * 64, bytes=400_000_000)},
    )
    return Artifact(Path("out"), manifest)


def test_the_certificate_is_a_table_with_standard_errors(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    render.artifact(artifact, as_json=False)
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("english"))
    assert row.split() == [
        *("english", "2044", "18.123", "20.988"),
        *("0.1235", "±", "0.0068", "2.346", "±", "0.123", "87.65%", "±", "1.23%"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "model sample:gemma-3-270m, from google/gemma-3-270m (gemma3_text)",
        "container compressed-tensors, bfloat16",
        "awq 4 bits, groups of 128, zero points: 3 layers",
        "kept model.embed_tokens in bfloat16",
        "size 400 MB, 11.83 bits per weight over all",
        "Certificate, level reference (torch 2.13.0)",
        "Certificate, level native (transformers): not run, accelerate is missing",
    ],
)
def test_facts_stand_on_lines_of_their_own(
    artifact: Artifact, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    render.artifact(artifact, as_json=False)
    assert line in [" ".join(text.split()) for text in capsys.readouterr().out.splitlines()]


def test_the_float16_verdict_names_the_module(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    render.artifact(artifact, as_json=False)
    assert (
        "does not fit; use bfloat16: largest activation 123,456 of 65,504, "
        "at layers.3.mlp.down_proj"
    ) in " ".join(capsys.readouterr().out.split())


def test_json_is_one_document_with_the_manifest(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    render.artifact(artifact, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == "out"
    assert document["manifest"]["certificates"][0]["slices"][0]["kl_mean"] == {
        "value": 0.12345,
        "standard_error": 0.00678,
    }


def test_a_plan_names_folder_container_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from gemquant.convert.plan import Job, JobPlan
    from gemquant.convert.plugins import exporter, quantizer_type
    from gemquant.core.protocols import AffineScheme, ArtifactHeader, PlainSpec, QuantizedSpec

    layout = {
        "model.embed_tokens.weight": PlainSpec((100, 64), torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight": QuantizedSpec((64, 64), AffineScheme(4, 64, True)),
    }
    job = Job(
        quantizer=quantizer_type("rtn")(),
        exporter=exporter("compressed-tensors"),
        out=Path("made"),
        recipe=Recipe(model="m", quantizer="rtn", target="cpu"),
    )
    planned = JobPlan(job, ArtifactHeader({}, layout), {"model.safetensors": 15_744})
    plan_tables.plans([planned], as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "model      m",
        "folder     made",
        "container  compressed-tensors, for cpu",
        "rtn        4 bits, groups of 64, symmetric: 1 layer",
        "kept       model.embed_tokens",
        "size       15.7 kB in model.safetensors; 12.00 bits per weight over all",
        "",
        "Nothing was written (--dry-run).",
    ]


def test_one_window_has_no_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    alone = dataclasses.replace(LOSS, windows=1)
    record = certificate_record(Certificate("reference", "torch", slices=(alone,)))
    render.print_tables(*render.certificate(record))
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("english"))
    assert row.split()[4:] == ["0.1235", "2.346", "87.65%"]


def test_the_distance_of_a_level_from_the_reference_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    certificate = Certificate(
        "native", "transformers", slices=(LOSS,), kl_from_reference=Measurement(0.00123, 0.00045)
    )
    render.print_tables(*render.certificate(certificate_record(certificate)))
    assert (
        "KL divergence of this level from level reference: 0.00123 ± 0.00045."
        in capsys.readouterr().out
    )
