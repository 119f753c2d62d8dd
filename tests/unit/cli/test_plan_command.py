"""`gemquant plan`: tables, JSON, and every complaint at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.core.resources import total_memory
from gemquant.formats.checkpoint import open_checkpoint
from tests.helpers.tiny_gemma import NESTED, Kind, write_tiny_gemma
from tests.unit.cli.conftest import Run


@pytest.mark.parametrize("target", ["cpu", "cuda", "mps", "rk3588", "rk3576", "rk3562", "rv1126b"])
def test_every_target_is_planned_from_a_configuration_alone(
    run: Run, tmp_path: Path, target: str
) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma2")
    (folder / "model.safetensors").unlink()
    made = run("plan", str(folder), "--target", target, "--memory", "8G", "--json")
    assert made.code == 0, made.err
    document = json.loads(made.out)
    assert document["measured"] is False
    assert document["request"] == {
        "memory_bytes": 8_000_000_000,
        "context": 4096,
        "device": None,
        "gb_per_second": None,
    }
    for row in document["candidates"]:
        assert row["fits"]
        assert 0 < row["tokens_per_second_full"] <= row["tokens_per_second"]


@pytest.mark.parametrize("kind", NESTED)
def test_towers_are_counted_as_the_tensors_are(run: Run, kind: Kind, tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "model", kind)
    towers = open_checkpoint(str(folder)).towers
    assert towers is not None
    size = sum(towers.tensor(name).nbytes for name in towers.names())
    rows = json.loads(run("plan", str(folder), "--json").out)["candidates"]
    text = json.loads(run("plan", str(folder), "--json", "--text-only").out)["candidates"]
    for row, alone in zip(rows, text, strict=True):
        assert (row["tower_bytes"], alone["tower_bytes"]) == (size, 0)
        assert row["memory_bytes"] - alone["memory_bytes"] == size + row["image_bytes"]
    assert {bool(row["image_bytes"]) for row in rows} == {True}


def test_the_towers_of_a_medgemma_are_told_with_what_an_image_costs(
    run: Run, tmp_path: Path
) -> None:
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    vision |= {"num_attention_heads": 16, "image_size": 896, "patch_size": 14}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        "vision_config": {**vision, "model_type": "siglip_vision_model", "vision_use_head": False},
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    document = json.loads(run("plan", str(tmp_path), "--json").out)
    # 27 layers of 4 · (1152² + 1152) + 4 · 1152 + 2 · 1152 · 4304 + 4304 + 1152,
    # then 589 · 1152 of patches, 4096 · 1152 of places, 2 · 1152 of the last norm.
    assert document["tower_weights"] == {
        "vision_tower": 416_866_032,
        "multi_modal_projector": 1152 * 2560 + 1152,
    }
    assert document["image_tokens"] == 256
    row = document["candidates"][0]
    assert row["tower_bytes"] == 2 * (416_866_032 + 1152 * 2560 + 1152)
    # 64 · 64 patches: the residual, its norm, and the MLP's 4304 before and after GELU.
    assert row["image_bytes"] == 2 * 4096 * (2 * 1152 + 2 * 4304)
    printed = run("plan", str(tmp_path)).out
    assert "vision_tower 416.9, multi_modal_projector 3.0 million weights, 840 MB in" in printed
    assert "an image: 256 tokens of the context, and 89.4 MB while it is read" in printed


def test_the_table_says_what_fits_and_that_nothing_was_measured(
    run: Run, tiny_folder: Path
) -> None:
    made = run("plan", str(tiny_folder), "--target", "rk3588", "--memory", "1M")
    assert made.code == 0, made.err
    assert "no, " in made.out
    assert "short" in made.out
    assert "rkllm-toolkit>=1." in made.out
    assert "nothing was measured on this model" in made.out


def test_every_complaint_is_made_at_once(run: Run) -> None:
    made = run("plan", "--target", "rk3599", "--memory", "8Q", "--context", "0")
    assert made.code == 2
    for part in ("--memory 8Q", "--context 0", "--target rk3599", "MODEL: missing", "4 problems"):
        assert part in made.err


def test_a_plan_advises_one_row_for_each_step_of_bits_with_its_command(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    model = str(tiny_folders["gemma2"])
    made = run("plan", model, "--target", "cuda", "--memory", "8G")
    assert made.code == 0, made.err
    rows = [line for line in made.out.splitlines() if f" {model}" in line and "people" not in line]
    schemes = ["bfloat16", "w8-g128", "Q8_0", "w4-g128"]
    assert [scheme for scheme in schemes if any(f" {scheme} " in row for row in rows)] == schemes
    assert len(rows) <= 10
    assert f"awq {model} --bits 4" in made.out
    assert "more with --all." in made.out
    assert "fits" not in made.out
    assert f"cuda: most people take: gemquant gguf {model} --type " in made.out
    everything = run("plan", model, "--target", "cuda", "--memory", "8G", "--all")
    assert len(everything.out.splitlines()) > 30
    assert "compressed-tensors w4-g32" in everything.out


def test_several_targets_are_one_table(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    model = str(tiny_folders["gemma2"])
    made = run("plan", model, "--target", "cpu,mps", "--target", "cuda", "--json")
    assert made.code == 0, made.err
    documents = json.loads(made.out)
    assert [each["target"] for each in documents] == ["cpu", "mps", "cuda"]
    assert documents[0]["request"]["memory_bytes"] == total_memory()
    assert documents[0]["candidates"][0]["fits"] is True
    table = run("plan", model, "--target", "cpu", "--target", "rk3588")
    assert "target  bits  scheme" in table.out
    assert "rk3588: most people take: gemquant rkllm" in table.out


def test_a_board_needs_no_memory_and_nothing_is_said_to_fit(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    made = run("plan", str(tiny_folders["gemma2"]), "--target", "rk3588", "--json")
    assert made.code == 0, made.err
    assert {row["fits"] for row in json.loads(made.out)["candidates"]} == {None}


def test_a_memory_without_unit_is_asked_for_its_unit(run: Run) -> None:
    made = run("plan", "nowhere", "--memory", "8")
    assert "--memory 8: 8 what?\n" in made.err
    assert "As in: --memory 8GB" in made.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", ","], "--target: missing."),
        (["--bandwidth", "0"], "--bandwidth 0: must be above 0."),
        (["--bandwidth", "nan"], "--bandwidth nan: must be above 0."),
    ],
)
def test_a_value_that_is_none_is_refused(
    run: Run, tiny_folders: dict[Kind, Path], flags: list[str], message: str
) -> None:
    made = run("plan", str(tiny_folders["gemma2"]), *flags)
    assert made.code == 2
    assert message in made.err


def test_a_target_without_preferences_is_advised_too(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    text = (Path(__file__).parents[3] / "targets" / "mps.toml").read_text()
    head, _, rest = text.partition("[preference]")
    (tmp_path / "mac.toml").write_text(head + rest[rest.index("[[containers]]") :])
    where = ["--target-folder", str(tmp_path), "--target", "mac"]
    made = run("plan", str(tiny_folders["gemma2"]), *where)
    assert made.code == 0, made.err
    assert " w4-g128 " in made.out
