"""What a certificate looks like in a terminal, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.cli import quantize, render
from gemquant.core.artifact import (
    ActivationRangeRecord,
    Artifact,
    FileRecord,
    LevelEvaluation,
    Manifest,
    Quantization,
    SchemeRecord,
    Source,
)
from gemquant.core.artifact.evaluation import Interval, WindowColumns
from gemquant.core.recipe import Recipe
from tests.helpers.tiny_evaluation import measured_slice

LOSS = measured_slice("english", kl=[0.1, 0.11, 0.12, 0.13]).model_copy(
    update={
        "perplexity_original": Interval(value=18.1234, low=17.5, high=18.7),
        "perplexity_quantized": Interval(value=20.9876, low=20.1, high=21.9),
        "kl_mean": Interval(value=0.12345, low=0.1167, high=0.1302),
        "kl_p999": Interval(value=2.3456, low=2.2222, high=2.469),
        "top1": Interval(value=0.8765, low=0.8642, high=0.8888),
    }
)


@pytest.fixture
def artifact() -> Artifact:
    certificates = (
        LevelEvaluation(level="reference", runtime="torch 2.13.0", slices=(LOSS,)),
        LevelEvaluation(level="native", runtime="transformers", not_run="accelerate is missing"),
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
        activation_range=ActivationRangeRecord(
            largest=123456.0, where="layers.3.mlp.down_proj", fits_float16=False
        ),
        certificates=certificates,
        libraries={},
        files={"model.safetensors": FileRecord(sha256="0" * 64, bytes=400_000_000)},
    )
    return Artifact(Path("out"), manifest)


def test_the_certificate_is_a_table_with_intervals(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    render.artifact(artifact, as_json=False)
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("english"))
    assert row.split() == [
        *("english", "18.12", "20.99", "0.1235", "[0.1167,", "0.1302]"),
        *("2.35", "[2.22,", "2.47]", "87.6", "%", "[86.4,", "88.9]"),
    ]
    assert (
        "KL divergence in nats per token; [ ] is the 95 % interval over windows. "
        "Each slice: 4 windows, 2,044 predicted tokens."
    ) in out


@pytest.mark.parametrize(
    "line",
    [
        "model sample:gemma-3-270m, from google/gemma-3-270m (gemma3_text)",
        "container compressed-tensors, bfloat16",
        "awq 4 bits, groups of 128, zero points: 3 matrices",
        "remaining model.embed_tokens in bfloat16",
        "size 400 MB, 11.83 bits per weight over all (about 4.2 in the 3 matrices)",
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
        "low": 0.1167,
        "high": 0.1302,
    }


def test_a_plan_names_folder_container_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from gemquant.convert.duration import Duration
    from gemquant.convert.plan import Job, PlannedJob
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
    planned = PlannedJob(job, ArtifactHeader({}, layout), {"model.safetensors": 15_744})
    quantize.print_plan([planned], Duration({"writing": 70.4}), as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "model        m",
        "folder       made",
        "container    compressed-tensors, for cpu",
        "rtn          4 bits, groups of 64, symmetric: 1 matrix (1 layer)",
        "remaining    model.embed_tokens",
        "size         15.7 kB in model.safetensors; 12.00 bits per weight over all",
        "certificate  8 windows of 128 tokens of all slices, 48 predictions of each",
        "",
        "time: about 1 min 10 s where nothing else runs (writing 1 min 10 s).",
        "Nothing was written (--dry-run).",
    ]


def test_one_window_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"kl_mean": 0.12345, "kl_p999": 2.3456, "top1": 0.8765}
    alone = LOSS.model_copy(
        update={
            "windows": WindowColumns(tokens=(511,)),
            **{name: Interval(value=x) for name, x in figures.items()},
        }
    )
    level = LevelEvaluation(level="reference", runtime="torch", slices=(alone,))
    render.print_tables(*render.losses([level], title="Certificate"))
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("english"))
    assert row.split()[3:] == ["0.1235", "2.346", "87.65", "%"]
    assert "KL divergence in nats per token. One window: no interval." in out


def test_the_distance_of_a_level_from_the_reference_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    level = LevelEvaluation(
        level="native",
        runtime="transformers",
        slices=(LOSS,),
        kl_from_reference=Interval(value=0.00123, low=0.00078, high=0.00168),
    )
    render.print_tables(*render.losses([level], title="Certificate"))
    assert (
        "KL divergence of this level from level reference: 0.00123 [0.00078, 0.00168] nats per "
        "token."
    ) in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_terminal_sequences_of_a_manifest_are_visible(
    artifact: Artifact, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;owned\x07\x9b2J\u202etxt"
    manifest = artifact.manifest.model_copy(
        update={"source": Source(ref=hostile, files={}), "base_model": hostile}
    )
    render.artifact(Artifact(artifact.path, manifest), as_json=as_json)
    shown = capsys.readouterr().out
    assert r"\u001b]0;owned\u0007\u009b2J\u202etxt" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e")
    if as_json:
        assert json.loads(shown)["manifest"]["source"]["ref"] == hostile


def test_tables_keep_the_letters_of_all_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_tables("می‌خواهم 日本\u3000語 é 👩‍🚀")
    assert capsys.readouterr().out == "می‌خواهم 日本\u3000語 é 👩‍🚀\n"


WIDE = (
    "per channel symmetric",
    "model.layers.0.self_attn.q_proj.weight",
    "128 columns are no multiple of 256, so that no block of this format fits a row",
)


def drawn(width: int | None) -> list[str]:
    made = render.table("scheme", "layer", "because", "size", numbers=["size"])
    made.add_row(*WIDE, "1.10 MB")
    return list(render._lines(made, width))


def test_a_table_in_a_pipe_has_one_line_a_row() -> None:
    head, row = drawn(None)
    assert row == "  ".join([*WIDE, "1.10 MB"])
    assert head.index("size") + len("size") == len(row)


@pytest.mark.parametrize("width", [100, 80, 20])
def test_no_word_of_a_table_is_broken(width: int) -> None:
    lines = drawn(width)
    words = [word for line in lines[1:] for word in line.split()]
    assert sorted(words) == sorted([*" ".join(WIDE).split(), "1.10", "MB"])
    assert max(map(len, lines)) <= max(width, 68)  # what the longest words need


def test_a_figure_is_wrapped_at_its_interval_alone() -> None:
    made = render.table("slice", "KL mean", numbers=["KL mean"])
    made.add_row("english", "87.6 % [86.4, 88.9]")
    assert list(render._lines(made, 21)) == [
        "slice         KL mean",
        "english        87.6 %",
        "         [86.4, 88.9]",
    ]


def test_slices_of_different_lengths_keep_their_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slices = (LOSS, measured_slice("code", kl=[0.1, 0.2]))
    level = LevelEvaluation(level="reference", runtime="torch", slices=slices)
    render.print_tables(*render.losses([level], title="Certificate"))
    assert "windows  tokens" in capsys.readouterr().out


def test_wide_letters_take_two_columns() -> None:
    made = render.table("name", "value")
    made.add_row("日本", "a")
    made.add_row("abcd", "b")
    assert list(render._lines(made, None)) == ["name  value", "日本  a", "abcd  b"]
