"""Checkpoints of quantization-aware training: codes and scales are carried over as they are.

Such a checkpoint holds weights that lie on a 4-bit grid; rounding them anew loses what the training
won. Some rows of every matrix decide whether it lies on one; then each of its groups is carried
over, and a group that is off the grid is rounded to nearest. docs/qat.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from gemquant.core.protocols import (
    AffineScheme,
    AffineWeight,
    Container,
    GridShare,
    GridUse,
    Progress,
    Weights,
)
from gemquant.errors import UsageError
from gemquant.models.architecture import tensor_shapes
from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_PROJECTION, PER_LAYER_TABLE

if TYPE_CHECKING:
    from torch import Tensor

CHOICES = ("auto", "on", "off")
HELP = (
    "Carry over codes and scales of matrices that lie on a 4-bit grid; on: refuse a model off it."
)
GROUP_SIZES = (32, 64, 128)
LEAST_SHARE, LEAST_STEPS = 0.999, 6
"""Of the groups that tell, on a grid; and steps of the largest magnitude, in half of these.

Training leaves all there, and uses the range: 7 or 8 steps. Rounding with zero points and decoding
leaves 36 to 61 % in groups of 32 and 84 to 95 % in groups of 128, as zero points of 7 and 8 are
those of a symmetric grid; a whole row in one group leaves 96 to 99.99 %, with 3 to 6 steps, and
2 or 3 bits leave all, with up to 4. Q3_K leaves 12 %."""
LARGEST_SCALE_ERROR = 2.0**-5
"""Beyond, a code of 8 would be nearer to another one: where float16 has no small numbers left."""
RUNS, ROWS = 4, 16
_TABLES = (EMBEDDING, HEAD, PER_LAYER_TABLE, PER_LAYER_PROJECTION)

Survey = Callable[[], Mapping[str, GridShare]]


def survey_grids(weights: Weights, progress: Progress) -> dict[str, GridShare]:
    """Read some rows of every matrix, in few runs, and test them for a 4-bit grid.

    The first rows alone are read of a matrix that they show to be off any grid.
    """
    shapes = {
        name: (shape[0], shape[1])
        for name, shape in tensor_shapes(weights.config).items()
        if len(shape) == 2 and shape[1] % GROUP_SIZES[0] == 0
    }
    progress.start("looking for a 4-bit grid", len(shapes))
    found = {}
    for name, shape in shapes.items():
        found[name] = _share(weights, name, shape)
        progress.advance("looking for a 4-bit grid")
    return found


def _share(weights: Weights, name: str, shape: tuple[int, int]) -> GridShare:
    import torch

    from gemquant.numerics.grid import OFF_GRID, ON_GRID, find_grid, stored_type

    last = max(0, shape[0] - ROWS)
    starts = sorted({last * n // (RUNS - 1) for n in range(RUNS)})
    read = [weights.rows(name, starts[0], starts[0] + ROWS, torch.float32).cpu()]
    dtype = stored_type(read[0])
    if (find_grid(read[0], dtype).kinds == OFF_GRID).float().mean() <= 0.5:
        read += [weights.rows(name, n, n + ROWS, torch.float32).cpu() for n in starts[1:]]
    rows = torch.cat(read)
    dtype, sizes = stored_type(rows), []
    grid = find_grid(rows, dtype)
    on_grid = int((grid.kinds == ON_GRID).sum())
    groups = on_grid + int((grid.kinds == OFF_GRID).sum())
    errors = {}
    steps = grid.codes.unflatten(1, (-1, GROUP_SIZES[0])).abs().amax(-1)[grid.kinds == ON_GRID]
    if groups and on_grid >= LEAST_SHARE * groups and int(steps.median()) >= LEAST_STEPS:
        sizes.append(GROUP_SIZES[0])
        for size in GROUP_SIZES[1:]:
            if shape[1] % size == 0:
                kinds = find_grid(rows, dtype, group_size=size).kinds
                if (kinds != OFF_GRID).float().mean() >= LEAST_SHARE:
                    sizes.append(size)
        for stored in (torch.bfloat16, torch.float16, torch.float32):
            error = grid.stored(stored)[2]
            kept = error[error <= LARGEST_SCALE_ERROR]
            errors[str(stored).removeprefix("torch.")] = float(kept.max()) if len(kept) else 0.0
    kind = str(dtype).removeprefix("torch.")
    return GridShare(shape, groups, on_grid, kind, tuple(sizes), errors)


def grid_use(
    qat: str,
    survey: Survey,
    *,
    holds: Callable[[str, GridShare], bool],
    wanted: Callable[[str, GridShare], bool],
    instead: str,
) -> GridUse:
    """What an option --qat and a survey make of a model.

    holds: whether a matrix on a grid is stored in a way that keeps its codes. wanted: whether a
    matrix is quantized at all. instead: what to type where it is stored in another way.
    UsageError with the share that was found where --qat on is given for a model off the grid.
    """
    from gemquant.core.artifact import grid_record

    if qat not in {"auto", "on"}:
        return GridUse()
    surveyed = survey()
    tied = {HEAD: surveyed[EMBEDDING]} if HEAD not in surveyed and EMBEDDING in surveyed else {}
    carried = {
        name: share
        for name, share in {**surveyed, **tied}.items()
        if share.group_sizes and holds(name, share)
    }
    use = GridUse(surveyed, carried)
    missing = [
        name
        for name, share in surveyed.items()
        if name not in carried and name not in _TABLES and wanted(name, share)
    ]
    if qat == "on" and (missing or not carried):
        off = [name for name in missing if not surveyed[name].group_sizes]
        if off or not missing:
            raise UsageError(
                f"--qat on: {grid_record(use)}; off it are {_few(off or surveyed)}.",
                hint="Leave --qat out: what lies on a grid is carried over, the rest quantized.",
            )
        raise UsageError(f"--qat on: {_cannot_hold(missing)}.", hint=f"Use {instead}")
    return use


def use_notes(use: GridUse, wanted: Callable[[str, GridShare], bool], instead: str) -> list[str]:
    """What the user should know: what is carried over, or what to type so that it is."""
    from gemquant.core.artifact import grid_record

    notes = []
    if use.carried:
        count = len(use.carried.keys() & use.surveyed.keys())
        notes.append(f"{grid_record(use)}: codes and scales of {count} are carried over unchanged")
    rounded = [n for n, share in use.on_grid.items() if n not in use.carried and wanted(n, share)]
    if rounded:
        notes.append(f"caution: {_cannot_hold(rounded)}; {instead} carries the codes over")
    return notes


def _cannot_hold(names: list[str]) -> str:
    return f"on a 4-bit grid that its type does not hold: {_few(names)}"


def _few(names: Iterable[str]) -> str:
    modules = [name.removesuffix(".weight").removeprefix("model.") for name in names]
    return ", ".join(modules[:2]) + (f" and {len(modules) - 2} more" if len(modules) > 2 else "")


# ---------------------------------------------------------------- carrying over


def carried_weight(
    weight: Tensor,
    scheme: AffineScheme,
    container: Container,
    share: GridShare,
    round_off_grid: Callable[[], AffineWeight],
) -> AffineWeight:
    """An affine weight with the codes of (out, in); groups off the grid from ``round_off_grid``.

    The zero point is the middle code, and the scale negative where a weight is −8 · −scale.
    """
    import torch

    from gemquant.numerics.grid import find_grid

    grid = find_grid(
        weight,
        getattr(torch, share.dtype),
        group_size=scheme.group_size,
        threads=torch.get_num_threads(),
    )
    found, stored, error = grid.stored(container.scale_dtype)
    kept = error <= LARGEST_SCALE_ERROR
    middle = 2 ** (scheme.bits - 1)
    codes = (found.to(torch.int16) + middle).to(torch.uint8)
    # As everywhere: a group of zeros has a scale of one.
    scales = torch.where(stored == 0, 1.0, stored).to(container.scale_dtype)
    real = container.biases and not scheme.symmetric
    zeros = torch.full(scales.shape, middle, dtype=torch.float32 if real else torch.uint8)
    if not bool(kept.all()):
        plain = round_off_grid()
        wide = kept.repeat_interleave(scheme.group_size, 1)
        codes = torch.where(wide, codes, plain.codes.cpu())
        scales = torch.where(kept, scales, plain.scales.cpu())
        zeros = torch.where(kept, zeros, plain.zero_points.cpu())
    return AffineWeight(scheme, codes, scales, zeros)


def carried_blocks(
    weight: Tensor, share: GridShare, round_off_grid: Callable[[], Tensor]
) -> Tensor:
    """Blocks of Q4_0, (out, bytes of a row) uint8, with the codes of (out, in) float32."""
    import torch

    from gemquant.numerics.grid import find_grid

    grid = find_grid(weight, getattr(torch, share.dtype))
    found, stored, error = grid.stored(torch.float16)
    kept = error <= LARGEST_SCALE_ERROR
    codes = (found + 8).view(torch.uint8).unflatten(1, (-1, 32))
    packed = codes[..., :16] | codes[..., 16:] << 4
    scales = stored.to(torch.float16).view(torch.uint8).unflatten(1, (-1, 2))
    blocks = torch.cat([scales, packed], -1)
    if not bool(kept.all()):
        plain = round_off_grid().unflatten(1, (-1, 18))
        blocks = torch.where(kept[..., None], blocks, plain)
    return blocks.flatten(1)
