"""The schema of a device in a target file: memory, speed, an NPU's rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gemquant.models.architecture import registered

Generation = Annotated[str, AfterValidator(registered)]
"""A generation of Gemma, by its text model's ``model_type``."""

NonEmpty = Annotated[str, Field(min_length=1)]
Sources = Annotated[tuple[NonEmpty, ...], Field(min_length=1)]


class Data(BaseModel):
    """Base of everything read from a target file: immutable, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Speed(Data):
    """How fast weights are read while decoding: a token takes bytes / bandwidth + a constant.

    device: the chip or board. schemes: names of those it holds for; empty for all.
    gb_per_second: 10⁹ bytes a second. basis: ``fitted`` to measured decoding, with the constant, or
    ``bound``, the memory's own bandwidth, which no runtime exceeds and none quite reaches.
    """

    device: NonEmpty
    gb_per_second: Annotated[float, Field(gt=0)]
    milliseconds_per_token: Annotated[float, Field(ge=0)] = 0.0
    basis: Literal["fitted", "bound"]
    schemes: tuple[NonEmpty, ...] = ()
    sources: Sources
    note: str = ""


class Footprint(Data):
    """Memory that a runtime needs besides weights and key-value cache.

    runtime_mib: a constant. vocabulary_bytes: for each token of the vocabulary.
    window_cache: generations whose sliding layers keep no more than their window.
    """

    runtime_mib: Annotated[float, Field(ge=0)]
    vocabulary_bytes: Annotated[float, Field(ge=0)] = 0.0
    window_cache: tuple[Generation, ...] = ()
    basis: Literal["fitted", "estimate"]
    sources: Sources


class NpuDtype(Data):
    """One quantized dtype of an NPU's toolkit.

    group_size: -1 for one scale per output channel. hybrid: the dtype that a hybrid rate mixes in.
    """

    name: NonEmpty
    weight_bits: Literal[4, 8]
    activation_bits: Literal[8, 16]
    group_size: Annotated[int, Field(ge=-1)]
    algorithms: Annotated[tuple[NonEmpty, ...], Field(min_length=1)]
    hybrid: bool


class Npu(Data):
    """What the toolkit accepts for this chip, and what the board must have.

    hybrid_rate_below: rates are at least 0 and below this. driver: the oldest NPU driver.
    """

    platform: NonEmpty
    toolkit: NonEmpty
    dtypes: Annotated[tuple[NpuDtype, ...], Field(min_length=1)]
    default_dtype: NonEmpty
    cores: Annotated[tuple[int, ...], Field(min_length=1)]
    optimization_levels: tuple[int, ...]
    hybrid_rate_below: float
    max_context: Annotated[int, Field(ge=1)]
    context_multiple: Annotated[int, Field(ge=1)]
    driver: NonEmpty
    sources: Sources

    def dtype(self, name: str) -> NpuDtype | None:
        """The quantized dtype of a name, or None."""
        return next((dtype for dtype in self.dtypes if dtype.name == name), None)
