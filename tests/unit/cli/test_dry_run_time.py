"""The duration that ``--dry-run`` predicts, from probes of the machine."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from gemquant.convert.duration import Duration, _fitted, _gram_terms
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.unit.cli.conftest import Run

FEW = ("--samples", "4", "--seq-len", "32", "--eval-windows", "1", "-t", "2")


def test_phases_add_up_and_what_is_imported_once_counts_once() -> None:
    one = Duration({"importing": 2.0, "quantizing": 60.0})
    both = one.joined(Duration({"importing": 2.0, "evaluation": 30.0}))
    assert both.document() == {
        "total": 92.0,
        "importing": 2.0,
        "quantizing": 60.0,
        "evaluation": 30.0,
    }
    assert str(both) == (
        "about 1 min 32 s where nothing else runs (importing 2 s, quantizing 1 min 0 s, "
        "evaluation 30 s)"
    )


def test_two_probes_tell_what_grows_with_columns() -> None:
    terms = [_gram_terms(512, 256), _gram_terms(256, 768)]
    times = [3e-9 * x + 2e-12 * y for x, y in terms]
    assert _fitted(terms, times) == pytest.approx((3e-9, 2e-12))
    assert _fitted(terms, [1.0, 0.5]) == pytest.approx((1.5 / (131_072 + 196_608), 0.0))


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (("awq",), "gemma2"),
        (("awq", "--no-gptq", "--target", "mps"), "gemma3_text"),
        (("rtn",), "gemma"),
        (("nf4",), "gemma4_e"),
        (("fp4",), "gemma2"),
        (("int8",), "gemma2"),
        (("cast",), "gemma4_moe"),
        (("gguf", "--type", "Q4_K_M", "--importance"), "gemma4_moe"),
    ],
)
def test_every_quantizer_says_how_long_it_takes(
    run: Run, tmp_path: Path, command: tuple[str, ...], kind: Kind
) -> None:
    name, *options = command
    made = run(
        name, str(write_tiny_gemma(tmp_path / "model", kind)), *options, *FEW, "--dry-run", "--json"
    )
    assert made.code == 0, made.err
    document = json.loads(made.out)["seconds_estimate"]
    total = document.pop("total")
    assert total == pytest.approx(sum(document.values()), abs=0.5)
    assert document["importing"] == 2.0
    assert torch.get_num_threads() == 2


def test_several_types_have_one_time_for_all(run: Run, tmp_path: Path) -> None:
    model = str(write_tiny_gemma(tmp_path / "model", "gemma4_e"))
    args = ("gguf", model, "--type", "Q4_K_M,Q8_0", *FEW, "--dry-run")
    first, second = json.loads(run(*args, "--json").out)
    assert first["seconds_estimate"] == second["seconds_estimate"]
    assert sum(line.startswith("time: about ") for line in run(*args).out.splitlines()) == 1


def test_the_probes_take_less_than_a_second(
    run: Run, tiny_folders: Mapping[Kind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemquant.convert import duration

    took, predict = [], duration.pass_duration

    def timed(*args: object) -> Duration:
        started = time.process_time()
        predicted = predict(*args)  # type: ignore[arg-type]
        took.append(time.process_time() - started)
        return predicted

    monkeypatch.setattr(duration, "pass_duration", timed)
    made = run("awq", str(tiny_folders["gemma2"]), *FEW, "--dry-run")
    assert made.code == 0, made.err
    assert took[0] < 1.0
