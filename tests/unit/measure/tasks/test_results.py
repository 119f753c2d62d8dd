"""lm-eval's results as records, from results written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gemquant.errors import ArtifactError
from gemquant.measure.tasks.harness import Loaded
from gemquant.measure.tasks.published import Figure
from gemquant.measure.tasks.results import Context, task_results
from tests.helpers.tiny_tasks import task_settings


def run(right: list[float], **scores: Any) -> dict[str, Any]:
    """Results of a group of two tasks, four samples each."""
    halves = {"one": right[:4], "two": right[4:]}
    made: dict[str, Any] = {
        "results": {},
        "group_subtasks": {"both": ["one", "two"]},
        "configs": {name: {} for name in halves},
        "n-shot": {"one": 5, "two": 5},
        "n-samples": {name: {"original": 10, "effective": 4} for name in halves},
        "versions": {"one": 1.0, "two": 1.0, "both": 2},
        "higher_is_better": {"one": {"acc": True}, "two": {"acc": True}},
        "samples": {
            name: [
                {"doc_id": n, "prompt_hash": f"{name}{n}", "filter": "none", "acc": value}
                for n, value in enumerate(values)
            ]
            for name, values in halves.items()
        },
    }
    for name, values in (*halves.items(), ("both", right)):
        share = sum(values) / len(values)
        made["results"][name] = {"alias": name, "acc,none": share, "acc_stderr,none": 0.1}
    made["results"]["both"] |= scores
    return made


OURS, THEIRS = [1.0, 0, 0, 0, 1.0, 1.0, 0, 0], [1.0, 1.0, 0, 0, 1.0, 1.0, 1.0, 0]
LOADED = Loaded(None, {}, {"both": ["one", "two"], "a_tag": ["one", "two"]}, {})
NOTHING = Context(None, (), task_settings())


def test_a_group_comes_first_with_all_its_samples_paired() -> None:
    group, one, two = task_results(["both"], LOADED, [run(OURS), run(THEIRS)], NOTHING)
    assert (group.task, group.num_fewshot, group.samples, group.samples_in_all) == (
        "both",
        5,
        8,
        20,
    )
    assert group.version == "2"
    assert [one.member_of, two.member_of] == ["both", "both"]
    (metric,) = group.metrics
    assert metric.artifact.value == 0.375
    assert metric.original is not None
    assert metric.original.value == 0.625
    assert metric.drop is not None
    assert (metric.drop.value, metric.drop.samples) == (0.25, 8)
    assert metric.drop.low is not None


def test_alone_an_artifact_has_no_drop() -> None:
    group, *_ = task_results(["both"], LOADED, [run(OURS)], NOTHING)
    assert (group.metrics[0].original, group.metrics[0].drop) == (None, None)


def test_what_was_skipped_has_a_reason_and_no_score() -> None:
    skipped, group, *_ = task_results(
        ["far", "both"], replace(LOADED, skipped={"far": "unreachable"}), [run(OURS)], NOTHING
    )
    assert (skipped.task, skipped.skipped, skipped.metrics) == ("far", "unreachable", ())
    assert group.task == "both"


def test_a_tag_is_its_tasks() -> None:
    one, two = task_results(["a_tag"], LOADED, [run(OURS)], NOTHING)
    assert [(each.task, each.member_of) for each in (one, two)] == [
        ("one", "a_tag"),
        ("two", "a_tag"),
    ]


def test_a_standard_error_that_is_none_is_left_out() -> None:
    (group, *_) = task_results(["both"], LOADED, [run(OURS, **{"acc_stderr,none": "N/A"})], NOTHING)
    assert group.metrics[0].artifact.standard_error is None


def test_a_score_that_is_no_number_is_an_error() -> None:
    broken = run(OURS, **{"acc,none": float("nan")})
    with pytest.raises(ArtifactError, match="both: acc is nan"):
        task_results(["both"], LOADED, [broken], NOTHING)


def test_a_published_figure_stands_beside_the_score() -> None:
    figure = Figure(
        model="me/gemma",
        task="both",
        metric="acc",
        value=0.5,
        wording="Both, 5-shot: 50",
        source="card",
        num_fewshot=5,
    )
    context = Context("me/gemma", (figure,), task_settings())
    group, one, _ = task_results(["both"], LOADED, [run(OURS)], context)
    published = group.metrics[0].published
    assert published is not None
    assert published.drop == 0.125
    assert one.metrics[0].published is None
