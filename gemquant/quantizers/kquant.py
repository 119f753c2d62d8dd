"""GGUF files as llama.cpp's quantize makes them: what is asked for, before the model is known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gemquant.errors import GemquantError, Problems, UsageError, refuse
from gemquant.gemma.gguf_file_types import FILE_TYPES, FileType, file_type, tensor_type
from gemquant.gemma.gguf_overrides import parse_override
from gemquant.gemma.gguf_types import TypeRequest, choose_types, importance_problems
from gemquant.numerics.ggml.types import TYPES
from gemquant.options import option, options_of
from gemquant.protocols import Block, Container, Member
from gemquant.resources import bytes_of

if TYPE_CHECKING:
    from gemquant.quantized_weights import BlockWeight

DEFAULT_TYPE = "Q4_K_M"


@dataclass(frozen=True)
class KQuant:
    """GGUF files for llama.cpp, in its mixtures of block formats, several in one pass.

    Formats and bytes are those of llama.cpp's own quantize; nothing is written in between.
    """

    name: ClassVar[str] = "gguf"
    target: ClassVar[str] = "cpu"

    type: tuple[str, ...] = option(
        (DEFAULT_TYPE,), f"File to make; again for another: {', '.join(FILE_TYPES)}.", repeated=True
    )
    tensor_type: tuple[str, ...] = option(
        (),
        "PATTERN=TYPE: a format for tensors whose name matches, as 'blk.*.attn_v=Q6_K'.",
        repeated=True,
    )
    embedding_type: str = option("", "Format of the embedding, which is mostly the head too.")
    output_type: str = option("", "Format of the head.")
    pure: bool = option(False, "The same format for every matrix, no mixture.")
    split_max_size: str = option("", "Largest part of a file to split: a number and kB, MB or GB.")

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def members(self, config: Mapping[str, Any]) -> Sequence[Member]:
        """One for each type. Raises everything that is wrong with the options and the model."""
        refuse(self.problems({}))
        made: list[Member] = []
        problems: list[GemquantError] = []
        for kind in self._file_types():
            try:
                made.append(self._member(kind, config))
            except GemquantError as error:
                problems += error.problems if isinstance(error, Problems) else [error]
        refuse(list({str(problem): problem for problem in problems}.values()))
        return made

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:  # noqa: ARG002
        """Options that mean nothing, whatever the model."""
        found: list[GemquantError] = []
        for name in self._type_names():
            found += _complaints(partial(_known, file_type, "--type", name, FILE_TYPES))
        for text in self.tensor_type:
            found += _complaints(partial(parse_override, text))
        for flag, name in (("embedding", self.embedding_type), ("output", self.output_type)):
            if name:
                found += _complaints(partial(_known, tensor_type, f"--{flag}-type", name, TYPES))
        if self.split_max_size:
            found += _complaints(partial(bytes_of, self.split_max_size, flag="--split-max-size"))
        names = [name.upper() for name in self._type_names()]
        found += [
            UsageError(f"--type {name}: asked for {names.count(name)} times.")
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        if not names:
            found.append(UsageError("--type: missing.", hint=f"As in: --type {DEFAULT_TYPE}"))
        return found

    def scheme_for(self, name: str, shape: tuple[int, int]) -> None:
        """Unknown before the model is; members know."""

    def quantize(
        self,
        block: Block,  # noqa: ARG002
        container: Container,  # noqa: ARG002
    ) -> Mapping[str, BlockWeight]:
        """Members do it."""
        raise TypeError("KQuant stands for its members: quantize with them.")

    def _type_names(self) -> list[str]:
        return [part.strip() for name in self.type for part in name.split(",") if part.strip()]

    def _file_types(self) -> list[FileType]:
        return [file_type(name) for name in self._type_names()]

    def _member(self, kind: FileType, config: Mapping[str, Any]) -> Member:
        from gemquant.quantizers.kquant_file import KQuantFile

        request = TypeRequest(
            kind,
            overrides=tuple(map(parse_override, self.tensor_type)),
            embedding_type=tensor_type(self.embedding_type) if self.embedding_type else None,
            output_type=tensor_type(self.output_type) if self.output_type else None,
            pure=self.pure,
        )
        plan = choose_types(config, request, has_importance=False)
        refuse(importance_problems(plan, None))
        own = {each.name: getattr(self, each.name) for each in options_of(self)}
        return Member(
            label=kind.name,
            quantizer=KQuantFile.of(plan, config),
            options={**own, "type": [kind.name]},
            notes=plan.without_effect,
        )


def _complaints(step: Callable[[], object]) -> Sequence[GemquantError]:
    """What a step complains about, if anything."""
    try:
        step()
    except GemquantError as error:
        return [error]
    return []


def _known(parse: Callable[[str], object], flag: str, name: str, known: Collection[str]) -> None:
    """Parse a name; where it is unknown, say which flag it was given to and what is close."""
    try:
        parse(name)
    except UsageError as error:
        close = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else error.hint
        raise UsageError(f"{flag} {name}: {error.message}", hint=hint) from None
