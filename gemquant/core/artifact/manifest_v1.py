"""Certificates of manifests of version 1, which held standard errors and no figures per window."""

from __future__ import annotations

from typing import Any

from pydantic import Field, TypeAdapter

from gemquant.core.artifact.evaluation import (
    Emulation,
    Interval,
    Level,
    LevelEvaluation,
    SliceEvaluation,
    WindowColumns,
)
from gemquant.core.json_document import Record
from gemquant.numerics.t_distribution import quantile


class _Mean(Record):
    value: float
    standard_error: float = Field(ge=0)

    def interval(self, windows: int, *, most: float | None = None) -> Interval:
        """The t interval of 95 % that the standard error over so many windows stands for."""
        if windows == 1:
            return Interval(value=self.value)
        half = self.standard_error * quantile(0.975, windows - 1)
        high = self.value + half if most is None else min(self.value + half, most)
        return Interval(value=self.value, low=self.value - half, high=high)


class _Slice(Record):
    slice: str
    windows: int = Field(ge=1)
    tokens: int = Field(ge=1)
    perplexity_original: _Mean
    perplexity_quantized: _Mean
    kl_mean: _Mean
    kl_p999: _Mean
    top1_agreement: _Mean

    def evaluation(self, token_stream: str) -> SliceEvaluation:
        """The slice in the form of today; every window had the same length."""
        length = self.tokens // self.windows
        return SliceEvaluation(
            slice=self.slice,
            seq_len=length + 1,
            token_stream=token_stream,
            windows=WindowColumns(tokens=(length,) * self.windows),
            perplexity_original=self.perplexity_original.interval(self.windows),
            perplexity_quantized=self.perplexity_quantized.interval(self.windows),
            kl_mean=self.kl_mean.interval(self.windows),
            kl_p999=self.kl_p999.interval(self.windows),
            top1=self.top1_agreement.interval(self.windows, most=1.0),
        )


class _Certificate(Record):
    level: Level
    runtime: str
    slices: tuple[_Slice, ...] = ()
    token_stream: str = ""
    not_run: str | None = None
    kl_from_reference: _Mean | None = None
    emulation: Emulation | None = None

    def evaluation(self) -> LevelEvaluation:
        """The certificate in the form of today."""
        # The digest is of the tokens of all slices together.
        digest = self.token_stream if len(self.slices) == 1 else ""
        between = self.kl_from_reference
        return LevelEvaluation(
            level=self.level,
            runtime=self.runtime,
            not_run=self.not_run,
            slices=tuple(each.evaluation(digest) for each in self.slices),
            kl_from_reference=None if between is None else between.interval(len(self.slices)),
            emulation=self.emulation,
        )


_CERTIFICATES = TypeAdapter(tuple[_Certificate, ...])


def read_certificates(document: Any) -> tuple[LevelEvaluation, ...]:
    """Read the certificates of a manifest of version 1; pydantic's ValidationError if malformed."""
    return tuple(each.evaluation() for each in _CERTIFICATES.validate_python(document))
