"""How an artifact is measured so that it can be compared with a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemquant.cli.eval_request import RECIPE

if TYPE_CHECKING:
    from gemquant.measure.gate.baseline import Baseline

FIRST_SUITE = "default"
"""What a baseline is first measured on."""


def measuring(baseline: Baseline | None, names: Sequence[str]) -> dict[str, Any]:
    """Parameters of `gemquant eval` that measure what a baseline holds.

    names: of the artifacts; those that the baseline does not hold are measured like its first one.
    Without a baseline: the default suite, and the settings of the artifacts' own recipe.
    """
    asked: dict[str, Any] = {
        "against": None,
        "suite": FIRST_SUITE,
        "eval_windows": None,
        "eval_slices": None,
        "seq_len": None,
        "seed": None,
        "device": None,
        "dtype": None,
        "native": True,
        "by_layer": False,
        "board": None,
    }
    if baseline is None:
        return asked
    entries = [each for each in baseline.artifacts if each.name in names] or baseline.artifacts[:1]
    levels = [
        level for each in entries for level in each.evaluation.levels if level.not_run is None
    ]
    # Level reference is of the whole suite; a runtime may have been measured on less.
    slices = next((each.slices for each in levels if each.level == "reference"), levels[0].slices)
    settings = entries[0].settings
    return asked | {
        "suite": None if baseline.suite.name == RECIPE else baseline.suite.name,
        "eval_windows": len(slices[0].windows.tokens),
        "eval_slices": tuple(each.slice for each in slices),
        "seq_len": slices[0].seq_len,
        **{key: settings.get(key) for key in ("seed", "device", "dtype")},
        "native": any(each.level == "native" for each in levels),
    }
