"""The record of an evaluation: a manifest's certificates, and what eval, gate and report read.

``LevelEvaluation`` is one level of one artifact: in ``manifest.json`` it is a certificate, in the
document of ``gemquant eval`` there is one for each artifact and level. Every figure has a 95 %
interval over windows. What was measured is stored per window, unrounded, so that a later comparison
can be paired window by window. No dates, host names or paths: the same artifacts on the same tokens
give the same bytes. The JSON Schema in ``docs/evaluation.schema.json`` is generated from these
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from gemquant.core.json_document import Document, Record

Level = Literal["reference", "native", "emulated", "vendor-sim"]
LEVELS: Mapping[Level, str] = {
    "reference": "Stored weights, decoded and run in torch: what quantization alone costs.",
    "native": "The finished artifact in the runtime that its container is made for.",
    "emulated": "A model of the device's arithmetic; not the device.",
    "vendor-sim": "The vendor's own simulator; not the device.",
}
COLUMNS = ("nll_original", "nll_quantized", "kl_mean", "top1", "top5")


class Interval(Record):
    """A figure over the measured tokens of a slice with its 95 % interval over windows."""

    value: float = Field(description="Over all measured tokens.")
    low: float | None = Field(default=None, description="Lower end; null from one window.")
    high: float | None = Field(default=None, description="Upper end; null from one window.")

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends; the value itself where there is no interval."""
        if self.low is None or self.high is None:
            return self.value, self.value
        return self.low, self.high


class WindowColumns(Record):
    """One entry per window, in the order of the token stream. Means are over measured tokens."""

    tokens: tuple[PositiveInt, ...] = Field(
        min_length=1,
        description="Predicted tokens that were measured, of `seq_len` − 1: all of them, or as "
        "many at equal distances.",
    )
    nll_original: tuple[float, ...] = Field(
        default=(),
        description="Mean negative log-likelihood under the original, nats per token. This and "
        "what follows is empty in certificates of manifests before version 2 alone.",
    )
    nll_quantized: tuple[float, ...] = Field(default=(), description="The same under the artifact.")
    kl_mean: tuple[float, ...] = Field(
        default=(),
        description="Mean Kullback-Leibler divergence from the original, nats per token.",
    )
    top1: tuple[float, ...] = Field(
        default=(), description="Fraction of tokens where both rank the same token first."
    )
    top5: tuple[float, ...] = Field(
        default=(),
        description="Mean fraction of the original's five most likely tokens that are among the "
        "artifact's five most likely.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        lengths = {len(getattr(self, name)) for name in COLUMNS}
        if lengths not in ({0}, {len(self.tokens)}):
            raise ValueError(f"windows: columns of {sorted({*lengths, len(self.tokens)})} entries")
        return self


class SliceEvaluation(Record):
    """Original against artifact on one slice, the same tokens for both."""

    slice: str = Field(description="Name of the slice.")
    seq_len: int = Field(ge=2, description="Tokens per window, the BOS included.")
    token_stream: str = Field(
        description="`sha256:` of the slice's tokens; empty where it was not recorded."
    )
    windows: WindowColumns = Field(description="What was measured, window by window.")
    perplexity_original: Interval = Field(description="Perplexity before.")
    perplexity_quantized: Interval = Field(description="Perplexity after.")
    nll_increase: Interval | None = Field(
        default=None,
        description="Mean negative log-likelihood after less before, paired, nats per token. Null "
        "in certificates of manifests before version 2 alone, as are median, 99 %, maximum, top5.",
    )
    kl_mean: Interval = Field(description="Mean divergence, nats per token.")
    kl_median: Interval | None = Field(default=None, description="Median over tokens.")
    kl_p99: Interval | None = Field(default=None, description="99th percentile over tokens.")
    kl_p999: Interval = Field(description="99.9th percentile over tokens.")
    kl_max: float | None = Field(default=None, description="Largest divergence of a token.")
    top1: Interval = Field(description="Fraction of tokens with the same first token.")
    top5: Interval | None = Field(
        default=None, description="Mean share of the five most likely tokens in common."
    )

    @property
    def window_count(self) -> int:
        """Number of windows."""
        return len(self.windows.tokens)

    @property
    def token_count(self) -> int:
        """Number of predicted tokens that were measured."""
        return sum(self.windows.tokens)

    @property
    def predicted_count(self) -> int:
        """Number of predicted tokens, measured or not."""
        return self.window_count * (self.seq_len - 1)


class TextColumns(Record):
    """One entry per text or, from `top1` on, per query: every other text, the first among them."""

    cosine: tuple[float, ...] = Field(
        min_length=1, description="Cosine similarity of the two embeddings of a text."
    )
    top1: tuple[float, ...] = Field(description="1 where both rank the same document first.")
    overlap: tuple[float, ...] = Field(
        description="Share of the original's ten first documents among the artifact's ten."
    )
    spearman: tuple[float, ...] = Field(description="Spearman's rank correlation of all documents.")


class EmbeddingEvaluation(Record):
    """Embeddings of one slice's texts by an original and its artifact.

    Queries and documents take turns, with the model's prompts. Each query ranks the documents of
    all slices by cosine similarity.
    """

    slice: str = Field(description="Name of the slice.")
    seq_len: int = Field(ge=2, description="Tokens per text, prompt and special tokens included.")
    token_stream: str = Field(description="`sha256:` of the slice's tokens.")
    documents: int = Field(ge=0, description="Documents that a query ranks.")
    texts: TextColumns = Field(description="What was measured, text by text.")
    cosine_mean: Interval = Field(description="Mean cosine similarity, over texts.")
    cosine_p01: Interval = Field(description="The first percentile over texts.")
    top1: Interval = Field(description="Fraction of queries with the same first document.")
    overlap: Interval = Field(description="Mean share of ten first documents in common.")
    spearman: Interval = Field(description="Mean rank correlation.")

    @property
    def text_count(self) -> int:
        """Number of texts."""
        return len(self.texts.cosine)


class LayerErrors(Record):
    """How far a slice's hidden states lie from the original's after each decoder layer.

    Each list has one entry per layer. The BOS that opens each window is left out: its state is so
    much larger than all others that it would hide them.
    """

    slice: str = Field(description="Name of the slice.")
    relative: tuple[float, ...] = Field(
        description="Norm of the difference over the norm of the original's, all tokens together."
    )
    cosine: tuple[float, ...] = Field(description="Mean cosine between the two, over tokens.")


class TensorCost(Record):
    """What one linear, expert or table of an artifact costs alone, all others the original's."""

    tensor: str = Field(
        description="Its module: `model.layers.3.mlp.down_proj`, `model.layers.3.experts.7` for an "
        "expert's three, `model.embed_tokens` for a table and the head that is tied to it."
    )
    own_error: float | None = Field(
        description="Norm of the difference of its layer's output over the norm of the original's; "
        "an expert's: its share of that of all experts together. Null for tables."
    )
    kl_mean: float = Field(
        description="Mean divergence, nats per token, over the first window of every slice, "
        "truncated to 2048 tokens in all."
    )


class Emulation(Record):
    """One corner of the bracket that level ``emulated`` consists of."""

    dtype: str = Field(description="What is emulated: `w8a8`, `w8a8_g128`, …")
    activations: Literal["per token", "per tensor"] = Field(
        description="What shares a scale: each token's inputs, or those of all tokens of a window."
    )
    head: Literal["float16", "int8"] = Field(description="Type of the output head.")
    smoothing: bool = Field(
        description="Activation outliers were folded into the weights first. Where an artifact has "
        "both, the corners without smoothing are for comparison: what it would lose otherwise."
    )


class LevelEvaluation(Record):
    """One level of one artifact. Levels are never mixed."""

    level: Level = Field(
        description="`reference`: decoded weights in torch. `native`: in the runtime that the "
        "container is made for. `emulated`: a model of a device's arithmetic. `vendor-sim`: the "
        "vendor's own simulator."
    )
    runtime: str = Field(description="What computed the predictions, with its version.")
    not_run: str | None = Field(
        default=None, description="Why this level was not measured; null if it was."
    )
    slices: tuple[SliceEvaluation, ...] = Field(default=(), description="One per slice.")
    embeddings: tuple[EmbeddingEvaluation, ...] = Field(
        default=(),
        exclude_if=lambda record: not record,
        description="Instead of `slices`, of an embedding model.",
    )
    kl_from_reference: Interval | None = Field(
        default=None,
        description="Mean divergence of this level's predictions from level `reference`'s, over "
        "one window of every slice: what the runtime's own arithmetic changes. Nats per token.",
    )
    layers_accumulated: tuple[LayerErrors, ...] = Field(
        default=(),
        description="After each layer, with the errors of all layers before it; one per slice.",
    )
    layers_own: tuple[LayerErrors, ...] = Field(
        default=(),
        description="Each layer fed with the original's hidden states: its own error; one per "
        "slice. Only with `--by-layer`.",
    )
    tensors: tuple[TensorCost, ...] = Field(
        default=(),
        exclude_if=lambda record: not record,
        description="Tables, and the eight linears or experts of the largest errors, the most "
        "costly first. Only with `--by-layer`.",
    )
    emulation: Emulation | None = Field(
        default=None,
        exclude_if=lambda record: record is None,
        description="Which corner of the bracket; left out at other levels.",
    )


def measured_slices(
    level: LevelEvaluation,
) -> tuple[SliceEvaluation, ...] | tuple[EmbeddingEvaluation, ...]:
    """What a level has of every slice, predictions or embeddings."""
    return level.slices or level.embeddings


def emulated_corners(levels: Sequence[LevelEvaluation]) -> list[LevelEvaluation]:
    """The corners of the bracket at level ``emulated``, which are read together."""
    return [each for each in levels if each.emulation is not None]


class ArtifactEvaluation(Record):
    """One artifact, and what was measured of it."""

    name: str = Field(description="Its folder's name, or its file's.")
    container: str = Field(description="The container format.")
    quantizer: str = Field(description="The algorithm that decided the numbers.")
    scheme: str = Field(
        description="In a few words: `4 bits, groups of 128, zero points`, `Q4_K_M`, …"
    )
    digest: str = Field(
        description="`sha256:` over the names and hashes of its files, the card and what it shows "
        "left out."
    )
    size_bytes: int = Field(gt=0, description="Size of those files.")
    bits_per_weight: float = Field(gt=0, description="As in its manifest.")
    libraries: Mapping[str, str] = Field(
        default_factory=dict,
        description="Versions of the libraries that it was made with, as in its manifest; empty "
        "where it has none.",
    )
    made_by: str | None = Field(
        default=None,
        exclude_if=lambda text: text is None,
        description="Of a referee, an artifact of others: what its metadata says of who made it. "
        "Left out for gemquant's.",
    )
    levels: tuple[LevelEvaluation, ...] = Field(description="What was measured, one per level.")

    @model_validator(mode="after")
    def _has_windows(self) -> Self:
        for level in self.levels:
            for each in level.slices:
                if not each.windows.kl_mean:
                    raise ValueError(f"level {level.level}, slice {each.slice}: no windows")
        return self

    def level(self, name: Level) -> LevelEvaluation | None:
        """One level, or None where it is not there."""
        return next((each for each in self.levels if each.level == name), None)


class SuiteRecord(Record):
    """The text that was evaluated on."""

    name: str = Field(description="`default`, `long`, …, or the file's name.")
    version: int = Field(ge=1, description="Rises whenever its text or a metric changes.")
    token_stream: str = Field(description="`sha256:` over the token streams of all slices.")


class OriginalRecord(Record):
    """The model that the artifacts are compared with."""

    ref: str = Field(description="As the user named it.")
    revision: str | None = Field(default=None, description="Commit of a Hub checkpoint.")
    architecture: str = Field(description="The text model's `model_type`.")
    base_model: str | None = Field(default=None, description="Hub id, where it is known.")
    digest: str = Field(description="`sha256:` over the hashes of its weight files.")


class EvaluationDocument(Document):
    """All that one run of ``gemquant eval`` measured."""

    noun: ClassVar[str] = "evaluation"
    hint: ClassVar[str] = (
        "Evaluation documents are written by `gemquant eval ARTIFACT --output FILE`."
    )
    place: ClassVar[str] = "as an argument, without a flag"

    gemquant: str = Field(description="The program's version.")
    suite: SuiteRecord = Field(description="The text.")
    original: OriginalRecord = Field(description="The model before.")
    settings: Mapping[str, str | int | float | bool] = Field(
        description="What else decides the figures: compute type, device, seed of the intervals."
    )
    machine: str = Field(description="Fingerprint of the machine, as in benchmarks.")
    artifacts: tuple[ArtifactEvaluation, ...] = Field(description="In the order given.")
