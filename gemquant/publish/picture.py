"""The picture of a collection: size against divergence, as SVG and PNG, for light and dark pages.

Drawn by matplotlib, of the extra ``picture``. The bytes depend on matplotlib's version and fonts,
so that each file carries a digest of what it shows: one with the right digest is up to date.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemquant.core.resources import UNITS
from gemquant.publish.figures import Member, by_family, recommended

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "size-and-loss"
INSTALL = "pip install 'gemquant[picture]'"
_VERSION = 2
"""Rises when the drawing changes."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
_ON_DARK = ("#56b4e9", "#f28e2b", "#2fc99a", "#e3a1c6", "#f0e442", "#4f8fd0")
"""After Okabe and Ito, whose colours the colour-blind tell apart."""
_MARKERS = "osD^vP"
_INCHES = (9.0, 5.2)
_PNG_DPI = 200


@dataclass(frozen=True)
class _Theme:
    page: str
    ink: str
    faint: str
    colours: tuple[str, ...]


_LIGHT = _Theme("#ffffff", "#1f2328", "#d1d9e0", _COLOURS)
_DARK = _Theme("#0d1117", "#e6edf3", "#30363d", _ON_DARK)


@dataclass(frozen=True)
class _Point:
    label: str
    family: str
    size: int
    kl: float
    bounds: tuple[float, float]
    advised: bool


def installed() -> bool:
    """Whether matplotlib is here."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        return False
    return True


def drawable(members: Iterable[Member]) -> bool:
    """Whether there are two points at least; a divergence of 0 has no place on the scale."""
    return len(_points(members)) > 1


def is_current(name: str, content: bytes, members: Sequence[Member]) -> bool:
    """Whether a file shows these members."""
    return _digest(name, _points(members)).encode() in content


def draw(title: str, members: Sequence[Member]) -> dict[str, bytes]:
    """The picture's files by name. Raises ImportError without matplotlib."""
    points = _points(members)
    made = {}
    for suffix, theme in (("", _LIGHT), ("-dark", _DARK)):
        for kind in ("svg", "png"):
            name = f"{NAME}{suffix}.{kind}"
            made[name] = _drawn(title, points, theme, kind, _digest(name, points))
    return made


def _points(members: Iterable[Member]) -> list[_Point]:
    points = []
    for family, several in by_family(members).items():
        measured = [each for each in several if each.figures and each.kl > 0]
        for each in measured:
            assert each.figures is not None
            bounds = each.figures.kl_mean.bounds
            advised = each is recommended(measured)
            points.append(_Point(each.short, family, each.size, each.kl, bounds, advised))
    return points


def _digest(name: str, points: Sequence[_Point]) -> str:
    said = json.dumps([_VERSION, name, [vars(each) for each in points]])
    return f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"


def _drawn(title: str, points: Sequence[_Point], theme: _Theme, kind: str, digest: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[str, Any] = {
        **{f"{part}.facecolor": theme.page for part in ("axes", "figure", "savefig")},
        **{f"{part}.color": theme.ink for part in ("text", "xtick", "ytick")},
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.faint,
        "grid.color": theme.faint,
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "svg.fonttype": "path",
        "svg.hashsalt": NAME,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.add_subplot()
        _axes(axes, points)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=13)
        for number, family in enumerate(dict.fromkeys(each.family for each in points)):
            of_family = [each for each in points if each.family == family]
            _family(axes, of_family, theme.colours[number % 6], _MARKERS[number % 6], theme)
        if len({each.family for each in points}) > 1:
            axes.legend(frameon=False, loc="upper right", fontsize=10)
        figure.draw_without_rendering()
        _labels(axes, points)
        stream = io.BytesIO()
        about = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=_PNG_DPI, metadata={"Description": digest, **about})
    return stream.getvalue()


def _axes(axes: Axes, points: Sequence[_Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    largest = max(each.size for each in points)
    unit = next((name for name in ("GB", "MB") if largest >= UNITS[name.lower()]), "kB")
    axes.set_yscale("log")
    low = min(min(each.kl, each.bounds[0] or each.kl) for each in points)
    high = max(max(each.kl, each.bounds[1]) for each in points)
    axes.set_ylim(low / 1.35, high * 1.5)
    sizes = [each.size for each in points]
    room = 0.09 * (max(sizes) - min(sizes) or max(sizes))
    axes.set_xlim(max(0, min(sizes) - room), max(sizes) + 2.2 * room)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / UNITS[unit.lower()]:g}"))
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"size, {unit}")
    axes.set_ylabel("mean KL divergence from the original,\nnats per token (lower is closer)")
    axes.grid(visible=True, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _family(axes: Axes, points: Sequence[_Point], colour: str, marker: str, theme: _Theme) -> None:
    """The points, their intervals, the line of those that none beats, a ring round the advised."""
    ordered = sorted(points, key=lambda each: (each.size, each.kl))
    front = [e for n, e in enumerate(ordered) if all(e.kl < other.kl for other in ordered[:n])]
    axes.plot([e.size for e in front], [e.kl for e in front], color=colour, alpha=0.45, lw=1.4)
    for each in points:
        axes.plot(
            [each.size] * 2, [max(b, 1e-12) for b in each.bounds], color=colour, alpha=0.6, lw=1.2
        )
    sizes, losses = [each.size for each in points], [each.kl for each in points]
    axes.scatter(sizes, losses, s=46, color=colour, marker=marker, label=points[0].family, zorder=3)
    rings = [each for each in points if each.advised]
    x, y = [each.size for each in rings], [each.kl for each in rings]
    axes.scatter(x, y, s=150, facecolor="none", edgecolor=theme.ink, zorder=2)


_PLACES = ((9, 5, "left"), (9, -12, "left"), (-9, 5, "right"), (-9, -12, "right"), (9, 14, "left"),
           (-9, 14, "right"), (9, -21, "left"), (-9, -21, "right"), (9, 24, "left"))  # fmt: skip
"""Where a label may stand, in points from its marker, the best first."""


def _labels(axes: Axes, points: Sequence[_Point]) -> None:
    """Put each label where it covers the fewest others and markers."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    scale = figure.dpi / 72
    middles = [axes.transData.transform((each.size, each.kl)) for each in points]
    taken = [
        Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in middles
    ]
    frame = axes.get_window_extent()
    for number in sorted(range(len(points)), key=lambda each: points[each].kl):
        point, own = points[number], middles[number]
        best: tuple[float, Any, Any] | None = None
        for turn, (right, up, side) in enumerate(_PLACES):
            text = axes.annotate(
                point.label,
                (point.size, point.kl),
                (right, up),
                textcoords="offset points",
                ha=side,
                fontsize=10,
                fontweight="bold" if point.advised else "normal",
            )
            box = text.get_window_extent()
            covered = sum(bool(box.overlaps(other)) for other in taken)
            outside = not (frame.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= frame.y1)
            far = _distance(box, own)
            nearer = sum(_distance(box, m) <= far for m in middles if m is not own)
            cost = 10 * covered + 20 * outside + 15 * nearer + 0.1 * turn
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
        assert best is not None
        taken.append(best[2])


def _distance(box: Any, point: Any) -> float:
    """From a point to the nearest edge of a box, in pixels."""
    across = max(box.x0 - point[0], 0, point[0] - box.x1)
    along = max(box.y0 - point[1], 0, point[1] - box.y1)
    return math.hypot(across, along)
