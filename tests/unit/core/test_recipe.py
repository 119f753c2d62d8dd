"""Recipes: complete, readable from TOML, JSON and manifests, and checked as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.core.recipe import Recipe
from gemquant.errors import Problems, UsageError


def test_a_recipe_has_every_default_filled() -> None:
    assert Recipe(model="m", quantizer="awq").to_dict() == {
        "model": "m",
        "quantizer": "awq",
        "options": {},
        "target": "cuda",
        "exporter": None,
        "calib": "general",
        "samples": 16,
        "seq_len": 512,
        "seed": 0,
        "eval_windows": 8,
        "eval_seq_len": 128,
        "eval_positions": 48,
        "eval_slices": None,
        "device": "cpu",
        "dtype": "float32",
        "calib_dtype": "auto",
        "lora": None,
        "chat_template": None,
        "text_only": False,
    }


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(model="m", quantizer="awq", options={"bits": 3}, eval_slices=("a", "b"))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("adapters", "written"),
    [((), None), (("a",), "a"), (("a", "b=0.5"), ["a", "b=0.5"])],
)
def test_adapters_are_nothing_one_or_a_list(adapters: tuple[str, ...], written: object) -> None:
    recipe = Recipe(model="m", quantizer="awq", lora=adapters)
    assert recipe.to_dict()["lora"] == written
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_toml_and_json_recipes_are_the_same(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "r.toml", tmp_path / "r.json"
    toml.write_text('model = "m"\nquantizer = "awq"\n[options]\nbits = 8\n')
    as_json.write_text('{"model": "m", "quantizer": "awq", "options": {"bits": 8}}')
    assert Recipe.load(toml) == Recipe.load(as_json)


def test_a_manifest_holds_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe(model="m", quantizer="rtn", samples=2)
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}, "recipe": recipe.to_dict()}))
    assert Recipe.load(tmp_path / "manifest.json") == recipe


def test_every_wrong_key_and_type_is_reported_at_once() -> None:
    with pytest.raises(Problems) as raised:
        Recipe.from_dict({"model": "m", "sampels": 3, "seq_len": "long", "seed": True})
    assert [str(p) for p in raised.value.problems] == [
        "quantizer: missing from the recipe.",
        "recipe: no such setting: sampels.\n  hint: Did you mean samples?",
        "recipe: seq_len = 'long': must be an integer.",
        "recipe: seed = True: must be an integer.",
    ]


def test_every_value_out_of_range_is_reported_at_once() -> None:
    recipe = Recipe(
        model="m", quantizer="awq", samples=0, seq_len=8, eval_windows=-1, device="tpu", dtype="f8"
    )
    assert [p.message for p in recipe.problems()] == [
        "--samples 0: must be at least 1.",
        "--seq-len 8: must be at least 16 tokens.",
        "--eval-windows -1: must be at least 0 (0: no certificate).",
        "--device tpu: must be cpu, cuda, cuda:N or mps.",
        "--compute-dtype f8: must be one of float32, bfloat16.",
    ]


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "cuda:1"])
def test_devices_are_named_as_torch_names_them(device: str) -> None:
    assert Recipe(model="m", quantizer="awq", device=device).problems() == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.toml", "model =", "r.toml: not TOML"),
        ("r.json", "[1]", "must hold a table of settings, not a list"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        Recipe.load(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Recipe.load(tmp_path / "none.toml")
