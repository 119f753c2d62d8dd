"""GGUF files as llama.cpp's quantize makes them: what is asked for, before the model is known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gemquant.core.family import Member
from gemquant.core.options import option, options_of
from gemquant.core.protocols import Block, Container
from gemquant.errors import GemquantError, ProblemCollector, UsageError, refuse
from gemquant.formats.gguf.mixtures import FILE_TYPES, FileType, file_type, tensor_type
from gemquant.formats.gguf.types import (
    TypeRequest,
    choose_types,
    importance_problems,
    parse_override,
)
from gemquant.numerics.ggml.types import TYPES

if TYPE_CHECKING:
    from gemquant.core.weights import BlockWeight
    from gemquant.quantizers.gguf_importance import Weighting

DEFAULT_TYPE = "Q4_K_M"


@dataclass(frozen=True)
class KQuant:
    """GGUF files for llama.cpp, in its mixtures of block formats, several in one pass.

    Formats and bytes are those of llama.cpp's own quantize; nothing is written in between. As
    there, errors count alike unless an importance matrix says otherwise: --imatrix FILE, or
    --importance to compute one. Several types make a folder each inside --output.
    """

    name: ClassVar[str] = "gguf"
    target: ClassVar[str] = "cpu"
    examples: ClassVar[str] = """\b
Examples:
  gemquant gguf sample:gemma-3-270m
  gemquant gguf google/gemma-3-1b-it --type Q4_K_M --type Q6_K -o gemma-3-1b-it-gguf
  gemquant gguf ./my-gemma --lora ./my-adapter --importance --calib my-text.jsonl
  gemquant gguf ./my-gemma --type IQ4_XS --imatrix my-gemma.imatrix.gguf --no-eval
  gemquant gguf gemma-3-1b-it-BF16.gguf --type Q5_K_M --tensor-type 'blk.*.attn_v=Q6_K'
  gemquant gguf google/gemma-2-9b --dry-run
"""

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
    imatrix: str = option("", "Importance matrix to weigh errors by: a FILE of llama.cpp's.")
    importance: bool = option(
        False, "Weigh errors by an importance matrix of the calibration text, computed on the way."
    )
    split_max_size: str = option("", "Largest file to split into, such as 2GB.", size=True)

    @property
    def needs(self) -> frozenset[str]:
        """Mean squares of activations, for an importance matrix of the calibration text."""
        return frozenset({"moments"}) if self.importance else frozenset()

    def members(self, config: Mapping[str, Any]) -> Sequence[Member]:
        """One for each type. Raises everything that is wrong with the options and the model."""
        refuse(self.problems({}))
        weighting = self._weighting(config)
        problems = ProblemCollector()
        members = [
            problems.attempt(partial(self._member, kind, config, weighting))
            for kind in self._file_types()
        ]
        problems.refuse()
        return [member.value for member in members]

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:  # noqa: ARG002
        """Options that mean nothing, whatever the model."""
        found = ProblemCollector()
        for name in self._type_names():
            found.attempt(partial(_known, file_type, "--type", name, FILE_TYPES))
        for text in self.tensor_type:
            found.attempt(partial(parse_override, text))
        for flag, name in (("embedding", self.embedding_type), ("output", self.output_type)):
            if name:
                found.attempt(partial(_known, tensor_type, f"--{flag}-type", name, TYPES))
        if self.imatrix and self.importance:
            found.append(
                UsageError(
                    "--imatrix and --importance: one importance matrix at a time.",
                    hint="Leave --importance out to use the file.",
                )
            )
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

    def _weighting(self, config: Mapping[str, Any]) -> Weighting | None:
        from gemquant.quantizers import gguf_importance as weighting

        if self.imatrix:
            return weighting.of_file(Path(self.imatrix), config)
        return weighting.OfCalibration(config) if self.importance else None

    def _member(
        self, kind: FileType, config: Mapping[str, Any], weighting: Weighting | None
    ) -> Member:
        from gemquant.quantizers.gguf_file import KQuantFile

        request = TypeRequest(
            kind,
            overrides=tuple(map(parse_override, self.tensor_type)),
            embedding_type=tensor_type(self.embedding_type) if self.embedding_type else None,
            output_type=tensor_type(self.output_type) if self.output_type else None,
            pure=self.pure,
        )
        plan = choose_types(config, request, has_importance=weighting is not None)
        refuse(importance_problems(plan, weighting.covered if weighting else None))
        own = {each.name: getattr(self, each.name) for each in options_of(self)}
        return Member(
            label=kind.name,
            quantizer=KQuantFile.of(plan, config, weighting),
            options={**own, "type": [kind.name]},
            notes=[*(weighting.notes if weighting else ()), *plan.without_effect],
        )


def _known(parse: Callable[[str], object], flag: str, name: str, known: Collection[str]) -> None:
    """Parse a name; where it is unknown, say which flag it was given to and what is close."""
    try:
        parse(name)
    except UsageError as error:
        close = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else error.hint
        raise UsageError(f"{flag} {name}: {error.message}", hint=hint) from None
