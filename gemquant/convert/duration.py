"""How long a run will take on this machine, from probes of a second: what ``--dry-run`` says.

Every step of the pass is tried on a small piece of its own work, with the functions that the run
itself calls, and multiplied by how often the run does it. Products of matrices are counted, since a
layer of a large Gemma takes seconds. Other programs on the same cores slow probe and run alike.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from gemquant.calibration.stream import RowsOf, UnheldWeights
from gemquant.calibration.trace import SAMPLED_TOKENS
from gemquant.calibration.windows import TokenWindows
from gemquant.convert.candidates import weight_count
from gemquant.convert.external import PreparedExternal
from gemquant.convert.plan import PlannedJob
from gemquant.convert.prepare import PreparedConversion
from gemquant.core.progress import STARTED
from gemquant.core.protocols import Block, QuantizedSpec, Statistics
from gemquant.core.recipe import Recipe
from gemquant.core.resources import human_seconds
from gemquant.core.weights import BlockScheme
from gemquant.formats.checkpoint import Checkpoint
from gemquant.measure.quality.divergence import VOCABULARY_AT_ONCE, Head, compare_predictions
from gemquant.models.architecture import layer_structure, unread_for_a_token
from gemquant.models.structure import (
    EMBEDDING,
    HEAD,
    InputGroup,
    LayerStructure,
    NormFold,
    layer_prefix,
)
from gemquant.numerics.precision import fast_products

PROBED_WEIGHTS = 1 << 17
PROBED_TOKENS = 128
PROBED_SECONDS, MOST_RUNS = 0.06, 12
LIBRARY_SECONDS, TOOL_SECONDS = 2.0, 10.0
"""Of importing transformers' layers, and all that a program of another project imports. Measured on
two cores."""
MORE_THREADS = 0.8
"""What a further thread adds, as a share of the first."""
PROBED_SIDES = (512, 256), (256, 768)
"""Rows and columns of two matrices; their times tell what grows with columns from what does not."""
WRITTEN_PER_SECOND = 250e6
"""Bytes flushed to a disk; to measure it would write."""
BESIDE_PRODUCTS = 1.4
"""Of a layer's products: norms, activations, attention's softmax. Measured on Gemma 3 270M."""


IMPORTING = "importing"


@dataclass(frozen=True)
class Duration:
    """Predicted seconds of a run by what it does, in order; all are estimates."""

    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(self.phases.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {human_seconds(s)}" for name, s in self.phases.items() if s >= 1)
        return f"about {human_seconds(self.seconds)} where nothing else runs ({parts})"

    def document(self) -> dict[str, float]:
        """For --json."""
        return {"total": round(self.seconds, 1)} | {n: round(s, 1) for n, s in self.phases.items()}

    def joined(self, other: Duration) -> Duration:
        """Both, one after the other; what is imported once counts once."""
        names = dict.fromkeys([*self.phases, *other.phases])
        both = {n: (self.phases.get(n, 0.0), other.phases.get(n, 0.0)) for n in names}
        return Duration({n: max(two) if n == IMPORTING else sum(two) for n, two in both.items()})


def prepared_so_far() -> Duration:
    """What the program has spent until now, and will again: imports, headers, text."""
    return Duration({"preparing": time.monotonic() - STARTED})


def pass_duration(prepared: PreparedConversion) -> Duration:
    """Predict one pass over a checkpoint, without its preparation."""
    done = prepared.resumable_layers if prepared.planned else 0
    return planned_duration(
        prepared.planned,
        prepared.checkpoint,
        prepared.calibration,
        prepared.evaluation,
        finished_layers=done,
    )


@fast_products()
def planned_duration(
    planned: Sequence[PlannedJob],
    checkpoint: Checkpoint,
    calibration: TokenWindows | None,
    evaluation: Sequence[TokenWindows],
    *,
    finished_layers: int = 0,
) -> Duration:
    """Predict ``pipeline.run``."""
    if not planned:
        return Duration()
    recipe, layers = planned[0].job.recipe, _layers(checkpoint)
    probe = _Probe(checkpoint, recipe)
    left = 1 - finished_layers / len(layers)
    weights = sum(prod(shape) for layer in layers for shape in layer.shapes.values())
    times = 1 if calibration else len(planned) + bool(evaluation)
    phases = {IMPORTING: LIBRARY_SECONDS} if calibration or evaluation else {}
    phases["reading"] = left * weights * probe.reading * times
    if calibration is not None:
        grams = any("gram" in each.job.quantizer.needs for each in planned)
        products = _products(checkpoint, layers, calibration)
        products += _gram_products(layers) * calibration.ids.numel() if grams else 0.0
        name = recipe.dtype if recipe.calib_dtype == "auto" else recipe.calib_dtype
        phases["calibration"] = left * products * probe.product(getattr(torch, name))
    quantizing, tables = probe.quantizing(planned, layers)
    phases["quantizing"] = left * quantizing + tables
    if evaluation:
        phases |= _evaluation(probe, checkpoint, layers, evaluation, len(planned), left)
    phases["writing"] = probe.writing(sum(each.total_bytes for each in planned))
    return Duration(phases)


@fast_products()
def evaluation_duration(
    checkpoint: Checkpoint,
    recipe: Recipe,
    evaluation: Sequence[TokenWindows],
    *,
    models: int = 1,
    heads: int = 1,
) -> Duration:
    """Predict the measurement of finished models at level reference. heads: of all of them."""
    if not evaluation:
        return Duration()
    probe, layers = _Probe(checkpoint, recipe), _layers(checkpoint)
    importing = {IMPORTING: LIBRARY_SECONDS}
    return Duration(
        importing | _evaluation(probe, checkpoint, layers, evaluation, models, heads=heads)
    )


@fast_products()
def external_duration(prepared: PreparedExternal) -> Duration:
    """Predict what another program makes: its input, the program, its measurement."""
    if prepared.finished is not None:
        return Duration()
    checkpoint, recipe, tool = prepared.checkpoint, prepared.recipe, prepared.tool
    tokens = 1 if tool.calibration is None else tool.calibration.ids.numel()
    products = tool.products_per_weight * tokens * weight_count(checkpoint.config)
    seconds = TOOL_SECONDS + products * _Probe(checkpoint, recipe).product(torch.float32)
    plain = planned_duration([prepared.plain], checkpoint, None, ())
    measured = evaluation_duration(checkpoint, recipe, prepared.evaluation)
    return plain.joined(Duration({tool.worker.name: seconds})).joined(measured)


def _evaluation(
    probe: _Probe,
    checkpoint: Checkpoint,
    layers: Sequence[LayerStructure],
    evaluation: Sequence[TokenWindows],
    models: int,
    left: float = 1.0,
    heads: int | None = None,
) -> dict[str, float]:
    measured = sum(windows.positions.numel() for windows in evaluation)
    products = sum(_products(checkpoint, layers, windows) for windows in evaluation)
    (vocabulary, hidden), product = checkpoint.shape(EMBEDDING), probe.product(probe.dtype)
    logit = probe.logit() + hidden * product
    return {
        "evaluation": left * products * (1 + models) * product,
        "comparing predictions": measured * vocabulary * (1 + (heads or models)) * logit,
    }


def _layers(checkpoint: Checkpoint) -> list[LayerStructure]:
    config = checkpoint.config
    return [layer_structure(config, n) for n in range(config["num_hidden_layers"])]


def _products(
    checkpoint: Checkpoint, layers: Sequence[LayerStructure], windows: TokenWindows
) -> float:
    """Multiplications of some windows' way through all layers, with what they take besides."""
    config, (count, length) = checkpoint.config, windows.ids.shape
    names = [
        f"{layer_prefix(n)}{linear}.weight"
        for n, each in enumerate(layers)
        for linear in each.linears
    ]
    unread = unread_for_a_token(config, names)
    linears = sum(
        prod(each.shapes[f"{linear}.weight"])
        for n, each in enumerate(layers)
        for linear in each.linears
        if f"{layer_prefix(n)}{linear}.weight" not in unread
    )
    attention = len(layers) * 2 * length * config["num_attention_heads"] * config["head_dim"]
    products: float = BESIDE_PRODUCTS * count * length * (linears + attention)
    return products


def _gram_products(layers: Sequence[LayerStructure]) -> float:
    """Multiplications of a token's part of all Gram matrices, of which half is computed."""
    return sum(
        each.shapes[f"{group.linears[0]}.weight"][1] ** 2 / 2
        for each in layers
        for group in each.groups
    )


class _Probe:
    """Seconds of small pieces of the run's work."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self._checkpoint = checkpoint
        self._device = torch.device(recipe.device)
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)
        name = f"{layer_prefix(0)}mlp.up_proj.weight"
        rows, columns = checkpoint.shape(name)
        rows = min(rows, -(-PROBED_WEIGHTS // columns))
        read = self._seconds(lambda: checkpoint.rows(name, 0, rows, torch.float32))
        self.reading = read / (rows * columns)

    def _seconds(self, work: Callable[[], object]) -> float:
        """The shortest of some runs on one thread, divided among the threads of the run.

        So it is hardly longer while other programs want the same cores.
        """
        took: list[float] = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            while len(took) < 2 or (sum(took) < PROBED_SECONDS and len(took) < MOST_RUNS):
                started = time.perf_counter()
                work()
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                took.append(time.perf_counter() - started)
        finally:
            torch.set_num_threads(threads)
        return min(took) / (1 + MORE_THREADS * (threads - 1))

    def product(self, dtype: torch.dtype) -> float:
        """Of one multiplication among those of a layer."""
        config = self._checkpoint.config
        hidden, inner = (min(config[key], 2048) for key in ("hidden_size", "intermediate_size"))
        generator = torch.Generator().manual_seed(0)
        left = torch.randn(256, hidden, generator=generator).to(self._device, dtype)
        right = torch.randn(hidden, inner, generator=generator).to(self._device, dtype)
        return self._seconds(lambda: left @ right) / left.shape[0] / right.numel()

    def logit(self) -> float:
        """Of one entry of the vocabulary for one token and one model, compared.

        After the first run of rows, in which every maximum is new.
        """
        table = torch.ones(VOCABULARY_AT_ONCE, 1, device=self._device)
        head = Head(torch.ones(PROBED_TOKENS, 1, device=self._device), lambda *_: table)
        targets = torch.zeros(PROBED_TOKENS, dtype=torch.int64, device=self._device)

        def compare(runs: int) -> Callable[[], object]:
            vocabulary = runs * VOCABULARY_AT_ONCE
            return lambda: compare_predictions(head, [head], targets, vocabulary=vocabulary)

        more = self._seconds(compare(3)) - self._seconds(compare(1))
        return max(0.0, more) / (2 * 2 * VOCABULARY_AT_ONCE * PROBED_TOKENS)

    def writing(self, size: int) -> float:
        """Of flushing and hashing files of so many bytes."""
        content = bytes(1 << 22)
        hashing = self._seconds(lambda: hashlib.sha256(content).digest()) / len(content)
        return size * (hashing + 1 / WRITTEN_PER_SECOND)

    # ------------------------------------------------------------ quantizers

    def quantizing(
        self, planned: Sequence[PlannedJob], layers: Sequence[LayerStructure]
    ) -> tuple[float, float]:
        """Of all jobs: the layers, and the tables besides."""
        found: dict[object, float] = {}
        in_layers = in_tables = 0.0
        done: set[object] = set()
        for each in planned:
            by_inputs = bool({"gram", "sample"} & each.job.quantizer.needs)
            if by_inputs:
                in_layers += self._by_inputs(each, layers)
            for name, spec in each.header.layout.items():
                if not isinstance(spec, QuantizedSpec):
                    continue
                in_layer = name.startswith("model.layers.")
                if in_layer and by_inputs:
                    continue
                key = each.job.recipe.quantizer, spec.scheme
                if isinstance(spec.scheme, BlockScheme):  # files of one pass share these bytes
                    if (name, key) in done:
                        continue
                    done.add((name, key))
                if key not in found:
                    found[key] = self._by_weight(each, name)
                if in_layer:
                    in_layers += found[key] * prod(spec.shape)
                else:
                    in_tables += found[key] * prod(spec.shape)
        return in_layers, in_tables

    def _by_weight(self, planned: PlannedJob, name: str) -> float:
        """Seconds a weight, of some rows of a matrix of the checkpoint's own."""
        rows, columns = planned.header.layout[name].shape
        source = EMBEDDING if name == HEAD and HEAD not in self._checkpoint.names() else name
        rows = min(rows, -(-PROBED_WEIGHTS // columns))
        short = name.rpartition(".layers.")[2].partition(".")[2] if ".layers." in name else name
        unheld = UnheldWeights(self._checkpoint, {short: RowsOf(source, 0, rows)}, self._device)
        block = self._block(name.removesuffix(short), short, dict(unheld), source=unheld)
        return self._quantized(planned, block) / (rows * columns)

    def _by_inputs(self, planned: PlannedJob, layers: Sequence[LayerStructure]) -> float:
        """Seconds of all layers, where a matrix's time grows faster than its size.

        rows · columns · a + (rows + columns) · columns² · b, and the same of every input group.
        """
        times, terms = [], []
        for rows, columns in ((32, 256), *PROBED_SIDES):
            weight = torch.randn(rows, columns, device=self._device)
            norm = torch.ones(columns, device=self._device)
            short, fold = "self_attn.q_proj.weight", NormFold("input_layernorm")
            weights = {short: weight, f"{fold.norm}.weight": norm}
            block = self._block(layer_prefix(1), short, weights, fold=fold)
            times.append(self._quantized(planned, block))
            terms.append(_gram_terms(rows, columns))
        (a, b), last = _fitted(terms[1:], times[1:]), (0.0, 0.0)
        for each in layers:
            for group in each.groups:
                rows = sum(each.shapes[f"{linear}.weight"][0] for linear in group.linears)
                columns = each.shapes[f"{group.linears[0]}.weight"][1]
                term = _gram_terms(rows, columns)
                last = last[0] + term[0], last[1] + term[1]
        return a * last[0] + b * last[1]

    def _block(
        self,
        prefix: str,
        short: str,
        weights: Mapping[str, Tensor],
        *,
        fold: NormFold | None = None,
        source: UnheldWeights | None = None,
    ) -> Block:
        linear, columns = short.removesuffix(".weight"), weights[short].shape[1]
        inputs = torch.randn(columns + SAMPLED_TOKENS, columns) if fold else torch.ones(1, columns)
        inputs = inputs.to(self._device)
        structure = LayerStructure(
            (InputGroup("probe", (linear,), fold),),
            {name: tuple(weight.shape) for name, weight in weights.items()},
        )
        statistics = Statistics(
            inputs.shape[0],
            inputs.double().square().sum(0),
            inputs.abs().mean(0),
            inputs.abs().amax(0),
            inputs.T @ inputs if fold else None,
            inputs[-SAMPLED_TOKENS:] if fold else None,
        )
        index = 1 if prefix else -1
        return Block(index, prefix, structure, weights, {linear: statistics}, source=source)

    def _quantized(self, planned: PlannedJob, block: Block) -> float:
        """Of quantizing a block, and of decoding it where a certificate will be measured."""
        job = planned.job
        container = job.exporter.container(planned.header.config)

        def quantize() -> None:
            block.shared.clear()
            for value in job.quantizer.quantize(block, container).values():
                if not isinstance(value, Tensor) and job.recipe.eval_windows:
                    value.dequantize()

        return self._seconds(quantize)


def _gram_terms(rows: int, columns: int) -> tuple[float, float]:
    return float(rows * columns), float((rows + columns) * columns**2)


def _fitted(terms: Sequence[tuple[float, float]], times: Sequence[float]) -> tuple[float, float]:
    """Solve a · x + b · y = time for two probes; neither is below 0."""
    (x1, y1), (x2, y2) = terms
    t1, t2 = times
    b = (t2 * x1 - t1 * x2) / (x1 * y2 - x2 * y1)
    if b <= 0:
        return (t1 + t2) / (x1 + x2), 0.0
    a = (t1 - b * y1) / x1
    return (a, b) if a > 0 else (0.0, (t1 + t2) / (y1 + y2))
