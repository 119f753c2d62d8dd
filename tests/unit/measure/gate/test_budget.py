from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.errors import Problems, UsageError
from gemquant.measure.gate.budget import Budgets, Override, read_budgets
from tests.helpers.tiny_gate import measured


def written(folder: Path, text: str) -> Path:
    (folder / "budgets.toml").write_text(text)
    return folder / "budgets.toml"


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    budgets = read_budgets(written(tmp_path, "[budget]\nkl_mean = 0.5\n"))
    assert budgets.limit("kl_mean", artifact="a") == 0.5
    assert budgets.limit("nll_increase", artifact="a") == 0.02


def test_the_last_override_that_fits_wins(tmp_path: Path) -> None:
    text = """
        [[override]]
        artifact = "gemma-*"
        kl_mean = 0.3
        [[override]]
        slice = "code"
        kl_mean = 0.4
    """
    budgets = read_budgets(written(tmp_path, text))
    assert budgets.limit("kl_mean", artifact="gemma-awq", slice_name="english") == 0.3
    assert budgets.limit("kl_mean", artifact="gemma-awq", slice_name="code") == 0.4
    assert budgets.limit("kl_mean", artifact="other", slice_name=None) == 0.02


def test_everything_wrong_with_a_file_is_told_at_once(tmp_path: Path) -> None:
    text = (
        '[budget]\nkl = 0.1\nkl_mean = -1\nsize = nan\ntop1 = true\n[[override]]\nlevel = "best"\n'
    )
    with pytest.raises(Problems) as caught:
        read_budgets(written(tmp_path, text))
    told = [str(each).split(":")[1].strip() for each in caught.value.problems]
    assert sorted(told) == [
        "budget.kl",
        "budget.kl_mean",
        "budget.size",
        "budget.top1",
        "override.1.level",
    ]


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not TOML"):
        read_budgets(written(tmp_path, "kl_mean: 0.1"))


def test_an_override_of_nothing_is_a_problem() -> None:
    budgets = Budgets(override=(Override(artifact="gemma-awk"), Override(slice="cod")))
    told = [str(each) for each in budgets.problems(measured().artifacts)]
    assert told == [
        "override 1 of the budgets: no artifact is called 'gemma-awk'; there are 'gemma-awq'.",
        "override 2 of the budgets: no slice is called 'cod'; there are 'code', 'english'.",
    ]
