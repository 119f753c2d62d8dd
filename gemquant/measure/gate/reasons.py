"""A verdict in words: what got worse, in which slice, metric and layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemquant.core.artifact.evaluation import ArtifactEvaluation, Level, LevelEvaluation
from gemquant.measure.gate.verdict import SEVERITY, Check, LayerFinding, Metric

WORDS: dict[Metric, tuple[str, str]] = {
    "nll_increase": ("negative log-likelihood rose by", " nats per token"),
    "kl_mean": ("mean KL divergence rose by", " nats per token"),
    "kl_mean_ceiling": ("mean KL divergence is", " nats per token"),
    "top1": ("top-1 agreement fell by", ""),
    "size": ("size grew by", ""),
    "peak_memory": ("peak memory grew by", ""),
    "decode_speed": ("decoding speed fell by", ""),
    "bytes_changed": ("bytes changed", ""),
}
# Errors below this are rounding of the arithmetic; their ratios mean nothing.
_FLOOR = 1e-8
# The squared error of a changed layer rises by more; a smaller rise has another cause.
SMALLEST_RISE = 0.02
FRACTIONS = ("top1", "size", "peak_memory", "decode_speed")


def located(
    checks: Sequence[Check], before: ArtifactEvaluation, now: ArtifactEvaluation
) -> list[LayerFinding]:
    """Find the layer to blame in every slice that did not pass; in the worst one where only all
    slices together did not.
    """
    found = []
    for level, name in dict.fromkeys(
        (group[0].level, _worst_slice(group, checks)) for group in _groups(checks)
    ):
        found += [(level, name)] if level is not None and name is not None else []
    found += [(c.level, c.slice) for c in checks if _failing(c) and c.level and c.slice]
    findings = []
    for level, name in dict.fromkeys(found):
        old, new = before.level(level), now.level(level)
        if old is not None and new is not None:
            finding = worst_layer(level, name, old, new)
            findings += [finding] if finding else []
    return findings


def reasons(checks: Sequence[Check], layers: Sequence[LayerFinding]) -> Iterator[str]:
    """One sentence for each level and metric that did not pass, the worst first."""
    by_place: dict[tuple[Level, str | None], LayerFinding] = {
        (each.level, each.slice): each for each in layers
    }
    groups = sorted(
        _groups(checks), key=lambda group: -max(SEVERITY[each.outcome] for each in group)
    )
    for group in groups:
        worst = _worst(group)
        if worst.level is None:
            yield _whole(worst)
            continue
        name = _worst_slice(group, checks)
        others = [each.slice for each in group if each.slice not in {None, worst.slice}]
        finding = by_place.get((worst.level, name))
        parts = [_place(worst, name), _amount(worst), _decision(worst)]
        if others:
            parts.append(f"; also in {', '.join(map(repr, others))}")
        if finding is not None:
            parts.append(f". {layer_words(finding)}")
        yield "".join(parts)


def layer_words(finding: LayerFinding) -> str:
    """Name the layer."""
    return (
        f"The error of hidden states rises at layer {finding.layer}: relative {finding.value:.4g} "
        f"after it, {finding.baseline:.4g} in the baseline"
    )


def amount(metric: Metric, value: float) -> str:
    """Write a figure in the metric's unit.

    >>> amount("top1", 0.0321), amount("kl_mean", 0.0321)
    ('3.21%', '0.03210')
    """
    return f"{value:.2%}" if metric in FRACTIONS else f"{value:.5f}"


def _failing(check: Check) -> bool:
    return SEVERITY[check.outcome] > 0


def _groups(checks: Sequence[Check]) -> list[list[Check]]:
    """Checks that did not pass, by level, metric and runtime."""
    groups: dict[tuple[Level | None, Metric, str | None], list[Check]] = {}
    for check in checks:
        if _failing(check):
            groups.setdefault((check.level, check.metric, check.where), []).append(check)
    return list(groups.values())


def _worst(group: Sequence[Check]) -> Check:
    """The check to report: the worst outcome, a slice before all of them, the largest loss."""
    return max(
        group,
        key=lambda c: (SEVERITY[c.outcome], c.slice is not None, c.increase or 0.0),
    )


def _worst_slice(group: Sequence[Check], checks: Sequence[Check]) -> str | None:
    """The slice that it is worst in, also where only all slices together show it."""
    worst = _worst(group)
    if worst.slice is not None:
        return worst.slice
    same = [c for c in checks if (c.metric, c.level) == (worst.metric, worst.level) and c.slice]
    return max(same, key=lambda c: c.increase or 0.0).slice if same else None


def _place(check: Check, name: str | None) -> str:
    if check.slice is not None:
        place = f"slice {check.slice!r}"
    else:
        place = "all slices" + (f", most in {name!r}" if name is not None else "")
    return f"level {check.level}, {place}: "


def _amount(check: Check) -> str:
    words, unit = WORDS[check.metric]
    assert check.increase is not None
    assert check.baseline is not None
    assert check.value is not None
    bounds = ""
    if check.low is not None and check.high is not None:
        low, high = amount(check.metric, check.low), amount(check.metric, check.high)
        bounds = f" ({low} to {high})"
    text = f"{words} {amount(check.metric, check.increase)}{unit}{bounds}"
    if check.metric != "kl_mean_ceiling":
        before, now = amount(check.metric, check.baseline), amount(check.metric, check.value)
        text += f", {before} → {now}"
    return text


def _decision(check: Check) -> str:
    if check.budget is None:
        return ""
    text = f", the budget is {amount(check.metric, check.budget)}"
    if check.outcome != "inconclusive":
        return text
    if check.note:
        return f"{text}: inconclusive, {check.note}"
    needed = f"; about {check.windows_needed} would decide" if check.windows_needed else ""
    return f"{text}: inconclusive with {check.windows} windows{needed}"


def _whole(check: Check) -> str:
    where = f"{check.where}: " if check.where else ""
    if check.metric == "bytes_changed":
        return f"{where}{check.note}"
    words, _ = WORDS[check.metric]
    assert check.increase is not None
    note = f" ({check.note})" if check.note else ""
    return f"{where}{words} {amount(check.metric, check.increase)}{_decision(check)}{note}"


# ---------------------------------------------------------------- layers


def worst_layer(
    level: Level, name: str, before: LevelEvaluation, now: LevelEvaluation
) -> LayerFinding | None:
    """Find the layer of a slice at which the error rises most; None where it rises nowhere.

    An error that a layer adds propagates to later layers, and so does the baseline's own; their
    ratio stays or falls there. So the layer to blame is the one at which the ratio of the squared
    relative errors jumps highest.
    """
    old = next((each.relative for each in before.layers_accumulated if each.slice == name), ())
    new = next((each.relative for each in now.layers_accumulated if each.slice == name), ())
    if not old or len(old) != len(new):
        return None
    ratios = _ratios(old, new)
    jumps = [ratio - previous for previous, ratio in zip([1.0, *ratios], ratios, strict=False)]
    layer = max(range(len(jumps)), key=jumps.__getitem__)
    if jumps[layer] < SMALLEST_RISE:
        return None
    return LayerFinding(
        level=level,
        slice=name,
        layer=layer,
        baseline=old[layer],
        value=new[layer],
        ratio_before=ratios[layer - 1] if layer else 1.0,
        ratio=ratios[layer],
    )


def _ratios(old: Sequence[float], new: Sequence[float]) -> list[float]:
    floor = _FLOOR + 1e-4 * max(old) ** 2
    return [(n * n + floor) / (o * o + floor) for o, n in zip(old, new, strict=True)]
