"""Token windows: documents in a seeded order, packed end to end, each window after one BOS.

Order: the documents of each file are shuffled, then taken from the files in turn, so that even
a few windows see many sources. Packing is continuous: a window may begin within a document, nothing
is padded, no document is read twice. A mixture's shares are shares of whole windows, and its
windows are interleaved by the seed. Text is tokenized only as far as it is needed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from gemquant.calibration.documents import (
    PREFIX,
    Conversation,
    Document,
    read_hub_dataset,
    read_user_file,
)
from gemquant.calibration.text import Library, Split, TextFile, largest_remainder
from gemquant.errors import CalibrationError, GemquantError, UsageError, refuse
from gemquant.models.chat import ChatTemplate, render

if TYPE_CHECKING:
    from torch import Tensor

BETWEEN_DOCUMENTS = "\n\n"

T = TypeVar("T")


class Encoding(Protocol):
    """A tokenizer's result."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""


class Tokenizer(Protocol):
    """The part of ``tokenizers.Tokenizer`` that gemquant uses."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoding:
        """Token ids of a text."""


@dataclass(frozen=True)
class TokenWindows:
    """Token ids to run through the model.

    ids: (windows, seq_len) int64; every window starts with the one BOS it has.
    name: the mixture, slice, file or data set.
    digest: ``sha256:`` over all windows in order, each id as a little-endian int32.
    """

    ids: Tensor
    name: str
    digest: str


def calibration_windows(
    tokenizer: Tokenizer,
    *,
    source: str,
    samples: int,
    seq_len: int,
    seed: int,
    bos: int,
    chat_template: ChatTemplate | None,
) -> TokenWindows:
    """Windows of calibration text.

    source: a mixture's name, FILE.txt, FILE.jsonl, or hf:DATASET[:SPLIT[:COLUMN]].
    samples, seq_len: number of windows and tokens in each, BOS included. bos: its token id.
    chat_template: for conversations; None where there are none.
    Raises UsageError for an unknown source, CalibrationError if the text is too short or unusable.
    """
    _check(samples, seq_len, what="--samples")
    packer = Packer(tokenizer, seq_len, bos, chat_template)
    library = Library.open()
    if source in library.mixtures:
        counts = largest_remainder(library.mixtures[source], samples)
        windows: list[list[int]] = []
        for kind, count in counts.items():
            stream = shipped_documents(library, kind, "calibration", seed)
            share = library.mixtures[source][kind]
            windows += packer.pack(stream, count, f"{source}, {kind} text", share=share)
        _generator(seed, "windows", source).shuffle(windows)
    else:
        documents = own_documents(source, library)
        _generator(seed, "documents").shuffle(documents)
        windows = packer.pack(iter(documents), samples, f"--calib {source}")
    return token_windows(windows, source)


def evaluation_windows(
    tokenizer: Tokenizer,
    *,
    slices: Sequence[str] | None,
    windows: int,
    seq_len: int,
    seed: int,
    bos: int,
    chat_template: ChatTemplate | None,
) -> list[TokenWindows]:
    """Windows of the shipped evaluation text, ``windows`` for each slice.

    slices: names from the index, such as english or code; None for all of them.
    Raises UsageError for an unknown slice, CalibrationError if the text is too short or unusable.
    """
    _check(windows, seq_len, what="--eval-windows")
    library = Library.open()
    known = library.slices()
    chosen = known if slices is None else tuple(dict.fromkeys(slices))
    refuse(
        [
            UsageError(f"evaluation slice {name}: not one of {', '.join(known)}.")
            for name in chosen
            if name not in known
        ]
    )
    packer = Packer(tokenizer, seq_len, bos, chat_template)
    return [
        token_windows(
            packer.pack(
                shipped_documents(library, name, "evaluation", seed), windows, f"slice {name}"
            ),
            name,
        )
        for name in chosen
    ]


@dataclass(frozen=True)
class Packer:
    """Turns documents into windows, tokenizing only what is needed."""

    tokenizer: Tokenizer
    seq_len: int
    bos: int
    chat_template: ChatTemplate | None

    def pack(
        self, documents: Iterator[Document], count: int, what: str, *, share: float = 1.0
    ) -> list[list[int]]:
        """Return ``count`` windows, a ``share`` of all, from the start of the documents."""
        stream = self._stream(documents, count)
        if len(stream) < count * self._room:
            raise CalibrationError(
                f"{what}: {len(stream)} tokens, but {count} windows of {self.seq_len} need "
                f"{count * self._room}.",
                hint=_what_fits(len(stream), self.seq_len, share),
            )
        return self._cut(stream, count)

    def windows(
        self, documents: Iterator[Document], name: str, what: str, count: int
    ) -> TokenWindows:
        """Return ``count`` windows under a name; CalibrationError where the text is too short."""
        return token_windows(self.pack(documents, count, what), name)

    def fitting(
        self, documents: Iterator[Document], name: str, what: str, most: int
    ) -> TokenWindows:
        """Return as many windows as the text fills, but no more than ``most``, and at least one."""
        stream = self._stream(documents, most)
        count = max(1, min(most, len(stream) // self._room))
        if len(stream) < self._room:
            raise CalibrationError(
                f"{what}: {len(stream)} tokens do not fill one window of {self.seq_len}.",
                hint=_what_fits(len(stream), self.seq_len, 1.0),
            )
        return token_windows(self._cut(stream, count), name)

    @property
    def _room(self) -> int:
        return self.seq_len - 1

    def _stream(self, documents: Iterator[Document], count: int) -> list[int]:
        """Tokens of as many documents as ``count`` windows need, if there are so many."""
        stream: list[int] = []
        while len(stream) < count * self._room and (document := next(documents, None)):
            stream += self._tokens(document)
        return stream

    def _cut(self, stream: Sequence[int], count: int) -> list[list[int]]:
        room = self._room
        return [[self.bos, *stream[n * room : (n + 1) * room]] for n in range(count)]

    def _tokens(self, document: Document) -> list[int]:
        if isinstance(document, Conversation):
            template = self.chat_template
            if template is None:
                raise ValueError("conversations, and no chat template")
            bos = str(template.special_tokens.get("bos_token", ""))
            text = render(template, document.messages).removeprefix(bos)
        else:
            text = document.text + BETWEEN_DOCUMENTS
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        # A template may contain <bos>, and so may a user's text.
        return [token for token in ids if token != self.bos]


def _what_fits(tokens: int, seq_len: int, share: float) -> str:
    fit = int(tokens // (seq_len - 1) / share)
    if fit == 0:
        return f"Give more text, or --seq-len {tokens + 1} at most."
    return f"Give more text, or at most {fit} windows of this length."


def shipped_documents(library: Library, kind: str, split: Split, seed: int) -> Iterator[Document]:
    """Every document of a kind: shuffled within its file, the files taking turns."""
    return dealt_documents(library, library.of(kind, split), seed, split, kind)


def dealt_documents(
    library: Library, of: Sequence[TextFile], seed: int, *labels: str
) -> Iterator[Document]:
    """Every document of some files: shuffled within its file, the files taking turns."""
    files = list(of)
    _generator(seed, *labels).shuffle(files)
    shuffled = [_shuffled(library, file, seed) for file in files]
    for deal in zip_longest(*shuffled):
        yield from (document for document in deal if document is not None)


def _shuffled(library: Library, file: TextFile, seed: int) -> Iterator[Document]:
    documents = library.read(file)
    _generator(seed, file.path).shuffle(documents)
    yield from documents


def own_documents(source: str, library: Library) -> list[Document]:
    """The user's documents: FILE.txt, FILE.jsonl or hf:DATASET."""
    if source.startswith(PREFIX):
        return read_hub_dataset(source)
    path = Path(source).expanduser()
    if not path.suffix and not path.exists():
        raise UsageError(
            f"--calib {source}: neither a file nor one of {', '.join(library.mixtures)}.",
            hint="--calib general, --calib FILE.txt, --calib FILE.jsonl or --calib hf:DATASET",
        )
    return read_user_file(path)


def shuffled(items: Sequence[T], seed: int, *labels: str) -> list[T]:
    """Items in an order that the seed and the labels decide."""
    ordered = list(items)
    _generator(seed, *labels).shuffle(ordered)
    return ordered


def _generator(seed: int, *labels: str) -> random.Random:
    """A generator for one purpose. Python hashes string seeds by sha512, on every machine."""
    return random.Random("/".join([str(seed), *labels]))  # noqa: S311 - an order, not a secret


def _check(count: int, seq_len: int, *, what: str) -> None:
    problems: list[GemquantError] = []
    if count < 1:
        problems.append(UsageError(f"{what} {count}: must be at least 1."))
    if seq_len < 2:
        problems.append(UsageError(f"--seq-len {seq_len}: must be at least 2, <bos> included."))
    refuse(problems)


def token_windows(windows: Sequence[Sequence[int]], name: str) -> TokenWindows:
    """Windows of one length under a name."""
    ids = torch.tensor(windows, dtype=torch.int64)
    return TokenWindows(ids, name, stream_digest([ids]))


def stream_digest(ids: Sequence[Tensor]) -> str:
    """``sha256:`` of token ids (windows, seq_len) in order, each as a little-endian int32."""
    digest = hashlib.sha256()
    for part in ids:
        digest.update(part.to(torch.int32).numpy().astype("<i4").tobytes())
    return f"sha256:{digest.hexdigest()}"
