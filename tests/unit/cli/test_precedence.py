"""A setting comes from the flag, the environment, the recipe, gemquant.toml or its default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemquant.cli.quantize import QuantizerCommand
from gemquant.cli.quantizer_options import QuantizerRequest, read_request
from gemquant.core.recipe import Recipe
from gemquant.errors import Problems, UsageError
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.unit.cli.conftest import Run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request_of(*args: str) -> QuantizerRequest:
    command = QuantizerCommand("awq")
    return read_request(command.make_context("awq", list(args)), command.quantizer)


def test_without_anything_the_defaults_hold() -> None:
    recipe = request_of("model").recipe
    assert (recipe.samples, recipe.options["bits"]) == (16, 4)


def test_a_file_in_the_working_folder_wins_over_the_default(folder: Path) -> None:
    (folder / "gemquant.toml").write_text("samples = 2\n[awq]\nbits = 8\n[rtn]\nbits = 3\n")
    recipe = request_of("model").recipe
    assert (recipe.samples, recipe.options["bits"]) == (2, 8)


def test_a_recipe_wins_over_the_file(folder: Path) -> None:
    (folder / "gemquant.toml").write_text("samples = 2\n[awq]\nbits = 8\n")
    (folder / "r.toml").write_text("samples = 3\n[options]\nbits = 3\n")
    recipe = request_of("model", "--recipe", "r.toml").recipe
    assert (recipe.samples, recipe.options["bits"]) == (3, 3)


def test_the_environment_wins_over_the_recipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "r.toml").write_text("samples = 3\n[options]\nbits = 3\n")
    monkeypatch.setenv("GEMQUANT_SAMPLES", "5")
    monkeypatch.setenv("GEMQUANT_BITS", "8")
    recipe = request_of("model", "--recipe", "r.toml").recipe
    assert (recipe.samples, recipe.options["bits"]) == (5, 8)


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMQUANT_SAMPLES", "5")
    assert request_of("model", "--samples", "6").recipe.samples == 6


def test_the_model_may_come_from_the_file(folder: Path) -> None:
    (folder / "gemquant.toml").write_text('model = "google/gemma-2-2b"\n')
    assert request_of().recipe.model == "google/gemma-2-2b"


def test_the_model_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMQUANT_MODEL", "google/gemma-2-2b")
    assert request_of().recipe.model == "google/gemma-2-2b"


def test_a_switch_may_be_turned_off_in_a_recipe(folder: Path) -> None:
    (folder / "r.toml").write_text("[options]\ngptq = false\n")
    assert request_of("model", "--recipe", "r.toml").recipe.options["gptq"] is False


@pytest.mark.parametrize("args", [("--no-compensate", "--refinements", "3"), ("--refinements=3",)])
def test_former_flags_are_accepted_with_a_note(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    options = request_of("model", *args).recipe.options
    assert (options["gptq"], options["cd_passes"]) == ("--no-compensate" not in args, 3)
    assert "note: --refinements is now called --cd-passes.\n" in capsys.readouterr().err


def test_the_manifest_of_an_older_version_gives_the_same_recipe(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = '{"bits": 8, "compensate": false, "refinements": 2}'
    (folder / "manifest.json").write_text(
        f'{{"recipe": {{"model": "m", "quantizer": "awq", "options": {options}}}}}'
    )
    recipe = request_of("--recipe", "manifest.json").recipe
    assert recipe == request_of("m", "--bits", "8", "--no-gptq", "--cd-passes", "2").recipe
    assert capsys.readouterr().err.splitlines() == [
        "note: compensate is now called gptq.",
        "note: refinements is now called cd_passes.",
    ]


def test_former_variables_and_tables_are_accepted_and_flags_win(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "gemquant.toml").write_text("[awq]\ncompensate = false\nrefinements = 2\n")
    monkeypatch.setenv("GEMQUANT_REFINEMENTS", "4")
    options = request_of("model", "--compensate").recipe.options
    assert (options["gptq"], options["cd_passes"]) == (True, 4)


def test_a_recipe_of_an_artifact_gives_the_same_recipe(folder: Path) -> None:
    made = request_of("model", "--eval-slices", "english,code", "--clip", "--seed", "7").recipe
    import json

    (folder / "manifest.json").write_text(json.dumps({"recipe": made.to_dict()}))
    assert request_of("--recipe", "manifest.json").recipe == made


def test_names_are_separated_by_commas() -> None:
    recipe: Recipe = request_of("model", "--eval-slices", "english, code").recipe
    assert recipe.eval_slices == ("english", "code")


def test_no_eval_means_no_evaluation_windows() -> None:
    assert request_of("model", "--no-eval").recipe.eval_windows == 0


def test_a_recipe_for_another_quantizer_is_refused(folder: Path) -> None:
    (folder / "r.toml").write_text('quantizer = "rtn"\n')
    with pytest.raises(UsageError, match=r"a recipe for rtn, not for awq"):
        request_of("model", "--recipe", "r.toml")


def test_everything_wrong_with_files_and_flags_is_reported_together(folder: Path) -> None:
    (folder / "gemquant.toml").write_text("sampels = 2\n")
    (folder / "r.toml").write_text("[options]\nbitz = 3\n")
    with pytest.raises(Problems) as raised:
        request_of("--recipe", "r.toml", "--target", "gpu", "--threads", "0")
    assert [problem.message for problem in raised.value.problems] == [
        "gemquant.toml: no such setting: sampels.",
        "r.toml: awq has no option bitz.",
        "MODEL: missing.",
        "--threads 0: must be at least 1.",
        "--target gpu: no such target.",
    ]


def test_a_wrong_key_of_a_table_names_file_and_table(folder: Path) -> None:
    (folder / "gemquant.toml").write_text("[rtn]\ngrop_size = 64\n[awq]\ngrop_size = 64\n")
    with pytest.raises(UsageError) as raised:
        request_of("model")
    assert raised.value.message == "gemquant.toml, [awq]: awq has no option grop_size."
    assert raised.value.hint == "Did you mean group_size?"


def test_a_misspelt_variable_is_noted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEMQUANT_GRUOP_SIZE", "32")
    monkeypatch.setenv("GEMQUANT_TARGETS_OF_MINE", "x")
    request_of("model")
    assert capsys.readouterr().err == (
        "note: $GEMQUANT_GRUOP_SIZE is not read; did you mean $GEMQUANT_GROUP_SIZE?\n"
    )


def test_targets_of_the_users_own_come_from_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[3] / "targets" / "cpu.toml").read_text()
    (folder / "board.toml").write_text(text)
    monkeypatch.setenv("GEMQUANT_TARGETS", str(folder))
    assert request_of("model", "--target", "board").target.name == "board"


@pytest.mark.parametrize(
    ("recorded", "types"),
    [
        (["Q4_K_M"], ["Q4_K_M"]),
        ("Q4_K_M", ["Q4_K_M"]),
        ("Q8_0,Q6_K", ["Q8_0", "Q6_K"]),
        (["Q8_0", "Q6_K"], ["Q8_0", "Q6_K"]),
    ],
)
def test_a_recipe_names_gguf_types_as_a_list_or_a_text(
    folder: Path, recorded: object, types: list[str]
) -> None:
    recipe = {"model": "m", "quantizer": "gguf", "options": {"type": recorded}}
    (folder / "manifest.json").write_text(json.dumps({"recipe": recipe}))
    command = QuantizerCommand("gguf")
    context = command.make_context("gguf", ["--recipe", "manifest.json"])
    request = read_request(context, command.quantizer)
    assert [quantizer.type for quantizer in request.quantizers] == types


def test_a_gguf_type_given_twice_is_refused() -> None:
    command = QuantizerCommand("gguf")
    context = command.make_context("gguf", ["m", "--type", "Q6_K", "--type", "q6_k"])
    with pytest.raises(UsageError, match=r"--type Q6_K: given 2 times\."):
        read_request(context, command.quantizer)


def test_adapters_are_given_one_by_one_or_as_a_list(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("a", "b=0.5")
    assert request_of("m", "--lora", "a", "--lora", "b=0.5").recipe.lora == given
    (folder / "gemquant.toml").write_text('lora = ["a", "b=0.5"]')
    assert request_of("m").recipe.lora == given
    (folder / "gemquant.toml").write_text('lora = "a"')
    assert request_of("m").recipe.lora == ("a",)
    monkeypatch.setenv("GEMQUANT_LORA", "my folder/a,b=0.5")
    assert request_of("m").recipe.lora == ("my folder/a", "b=0.5")


def test_a_window_longer_than_the_context_is_refused_as_such(run: Run, tmp_path: Path) -> None:
    write_tiny_gemma(tmp_path / "model", "gemma2")
    made = run("rtn", "model", "--seq-len", "100000")
    assert made.code == 2
    assert "--seq-len 100000: the model's context is 512 tokens." in made.err
