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
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import torch

from gemquant.calibration.documents import (
    PREFIX,
    Conversation,
    Document,
    read_hub_dataset,
    read_user_file,
)
from gemquant.calibration.text import Library, Split, TextFile, largest_remainder
from gemquant.core.resources import human_bytes
from gemquant.core.untrusted import user_path
from gemquant.errors import CalibrationError, GemquantError, UsageError, refuse
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import ChatTemplate, choose_template, render

if TYPE_CHECKING:
    from torch import Tensor

    from gemquant.core.recipe import Recipe
    from gemquant.formats.checkpoint import Checkpoint

BETWEEN_DOCUMENTS = "\n\n"
BYTES_PER_TOKEN = 4.3
"""Of English in Gemma's vocabulary, roughly."""
EMBEDDED_TOKENS = 64
"""Of the texts by which an embedding model is evaluated."""
SHORTEST = 16
"""Tokens of the shortest window that a recipe allows."""

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
    positions: (windows, measured) int64, ascending; an evaluation measures what is predicted after
        these. Left out: all but the last.
    """

    ids: Tensor
    name: str
    digest: str
    positions: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not self.positions.numel():
            every = torch.arange(self.ids.shape[1] - 1).expand(self.ids.shape[0], -1)
            object.__setattr__(self, "positions", every)

    def first(self, count: int) -> TokenWindows:
        """The first so many windows, measured at the same positions."""
        ids = self.ids[:count]
        return replace(self, ids=ids, digest=stream_digest([ids]), positions=self.positions[:count])

    def sampled(self, count: int, *, draw: int = 0) -> TokenWindows:
        """The same, measured at so many positions of each window; 0 or more than there are: at all.

        A systematic sample: positions at equal distances after a random start in each window. Each
        has the same chance, so that means are unbiased, and neighbours, which are alike, are rarely
        taken together. A window's tokens decide its start, so that equal text is measured alike;
        draw: another sample.
        """
        available = self.ids.shape[1] - 1
        if not 0 < count < available:
            return replace(self, positions=torch.empty(0, dtype=torch.int64))
        seeds = [f"{stream_digest([window])}/{draw}" for window in self.ids]
        starts = [[random.Random(seed).random()] for seed in seeds]  # noqa: S311 - no secret
        places = torch.arange(count) + torch.tensor(starts, dtype=torch.float64)
        places = (places * (available / count)).long()
        return replace(self, positions=places.clamp_(max=available - 1))


@dataclass(frozen=True)
class Packer:
    """Turns documents into windows, tokenizing only what is needed.

    seq_len: tokens of a window, BOS included. bos: its token id. chat_template: for conversations;
    None where there are none. seed: of every order. prompts: of an embedding model, whose windows
    begin with them in turns. ends: tokens that end every text.
    """

    tokenizer: Tokenizer
    seq_len: int
    bos: int
    chat_template: ChatTemplate | None
    seed: int = 0
    prompts: Sequence[Sequence[int]] = ((),)
    ends: Sequence[int] = ()

    @classmethod
    def of(cls, recipe: Recipe, checkpoint: Checkpoint, template: ChatTemplate) -> Self:
        """For the texts that a recipe names.

        UsageError where a window has no room for an embedding model's prompt and text.
        """
        tokenizer, bos = checkpoint.tokenizer(), checkpoint.config["bos_token_id"]
        plain = cls(tokenizer, recipe.seq_len, bos, template, recipe.seed)
        if not checkpoint.prompts:
            return plain
        # The space that ends a prompt belongs to the text's first word.
        prompts = [
            tokenizer.encode(prompt.rstrip(" "), add_special_tokens=False).ids
            for prompt in checkpoint.prompts.values()
        ]
        framed = replace(plain, prompts=prompts, ends=tokenizer.encode("").ids[1:])
        room = min(map(framed._room, range(len(prompts))))  # noqa: SLF001 (a Packer's own)
        if room < SHORTEST // 2:
            raise UsageError(
                f"--seq-len {recipe.seq_len}: the model's prompt and special tokens are "
                f"{recipe.seq_len - room} of them.",
                hint=f"--seq-len {recipe.seq_len - room + SHORTEST} at least",
            )
        return framed

    def pack(
        self,
        documents: Iterator[Document],
        count: int,
        what: str,
        *,
        share: float = 1.0,
        strict: bool = True,
    ) -> list[list[int]]:
        """Return ``count`` windows, a ``share`` of all, from the start of the documents.

        strict: refuse text that is too short for so many, instead of filling as many as it can.
        """
        stream: list[int] = []
        rooms = [self._room(number) for number in range(count)]
        while len(stream) < sum(rooms) and (document := next(documents, None)):
            stream += self._tokens(document)
        if len(stream) < self._room(0) and not strict:
            raise CalibrationError(
                f"{what}: {len(stream)} tokens do not fill one window of {self.seq_len}.",
                hint=_what_fits(len(stream), 1, self.seq_len, share),
            )
        if len(stream) < sum(rooms) and strict:
            raise CalibrationError(
                f"{what}: {len(stream)} tokens, but {count} windows of {self.seq_len} need "
                f"{sum(rooms)}.",
                hint=_what_fits(len(stream), count, self.seq_len, share),
            )
        windows: list[list[int]] = []
        for number, room in enumerate(rooms):
            text, stream = stream[:room], stream[room:]
            if len(text) == room:
                prompt = self.prompts[number % len(self.prompts)]
                windows.append([self.bos, *prompt, *text, *self.ends])
        return windows

    def _room(self, number: int) -> int:
        """Tokens of text in a window."""
        prompt = self.prompts[number % len(self.prompts)]
        return self.seq_len - 1 - len(prompt) - len(self.ends)

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


def calibration_windows(packer: Packer, source: str, samples: int) -> TokenWindows:
    """So many windows of calibration text.

    source: a mixture's name, FILE.txt, FILE.jsonl, or hf:DATASET[:SPLIT[:COLUMN]].
    Raises UsageError for an unknown source, CalibrationError if the text is too short or unusable.
    """
    _check(samples, packer.seq_len, what="--samples")
    library, seed = Library.open(), packer.seed
    if source in library.mixtures:
        counts = largest_remainder(library.mixtures[source], samples)
        windows: list[list[int]] = []
        for kind, count in counts.items():
            stream = shipped_documents(library, kind, "calibration", seed)
            share = library.mixtures[source][kind]
            windows += packer.pack(stream, count, f"{source}, {kind} text", share=share)
        windows = shuffled(windows, seed, "windows", source)
    else:
        documents = shuffled(own_documents(source, library), seed, "documents")
        windows = packer.pack(iter(documents), samples, f"--calib {source}")
    return token_windows(windows, source)


def evaluation_windows(
    packer: Packer, slices: Sequence[str] | None, windows: int, *, strict: bool = True
) -> list[TokenWindows]:
    """So many windows of each slice of the shipped evaluation text.

    slices: names from the index, such as english or code; None for all of them. strict: refuse
    text that is too short, instead of filling as many as it can.
    Raises UsageError for an unknown slice, CalibrationError if the text is too short or unusable.
    """
    _check(windows, packer.seq_len, what="--eval-windows")
    library = Library.open()
    known = library.slices()
    chosen = known if slices is None else tuple(dict.fromkeys(slices))
    refuse(
        UsageError(f"evaluation slice {name}: not one of {', '.join(known)}.")
        for name in chosen
        if name not in known
    )
    texts = {name: shipped_documents(library, name, "evaluation", packer.seed) for name in chosen}
    return [
        token_windows(packer.pack(text, windows, f"slice {name}", strict=strict), name)
        for name, text in texts.items()
    ]


def chat_template(recipe: Recipe, checkpoint: Checkpoint) -> ChatTemplate:
    """The template that was requested, by name or from a file, or else the checkpoint's."""
    chat = architecture_of(checkpoint.config).chat
    source = choose_template(recipe.chat_template, checkpoint.chat_template(), chat)
    return ChatTemplate(source, checkpoint.special_tokens())


def evaluation_text(
    recipe: Recipe, checkpoint: Checkpoint, template: ChatTemplate, *, strict: bool = True
) -> Sequence[TokenWindows]:
    """Read the evaluation text that a recipe names; empty if it has no certificate.

    strict: refuse text that is too short, instead of filling as many windows as it can.
    """
    if recipe.eval_windows == 0:
        return ()
    length, count = recipe.evaluation_tokens, recipe.eval_windows
    if checkpoint.prompts:
        length, count = embedded_texts(length, count)
    packer = Packer.of(replace(recipe, seq_len=length), checkpoint, template)
    slices = evaluation_windows(packer, recipe.eval_slices, count, strict=strict)
    if checkpoint.prompts:  # an embedding is of all positions
        return slices
    return [windows.sampled(recipe.eval_positions) for windows in slices]


def embedded_texts(seq_len: int, windows: int) -> tuple[int, int]:
    """Tokens and number of the texts that so many windows become for an embedding model.

    They are short, as queries are, and an even number of them, for half of them are queries.

    >>> embedded_texts(512, 4)
    (64, 32)
    """
    length = min(seq_len, EMBEDDED_TOKENS)
    count = max(1, windows * (seq_len // length))
    return length, count + count % 2


def _what_fits(tokens: int, count: int, seq_len: int, share: float) -> str:
    fit = int(tokens // (seq_len - 1) / share)
    if fit:
        return f"Give more text, or at most {fit} windows of this length."
    needed = int(count * (seq_len - 1) / share)
    hint = f"Give more text: {needed} tokens, about {human_bytes(int(BYTES_PER_TOKEN * needed))}"
    return f"{hint}; or one window of {tokens + 1}." if tokens >= SHORTEST else f"{hint}."


def shipped_documents(library: Library, kind: str, split: Split, seed: int) -> Iterator[Document]:
    """Every document of a kind: shuffled within its file, the files taking turns."""
    return dealt_documents(library, library.of(kind, split), seed, split, kind)


def dealt_documents(
    library: Library, of: Sequence[TextFile], seed: int, *labels: str
) -> Iterator[Document]:
    """Every document of some files: shuffled within its file, the files taking turns."""
    files = shuffled(of, seed, *labels)
    for deal in zip_longest(*(_documents(library, file, seed) for file in files)):
        yield from (document for document in deal if document is not None)


def _documents(library: Library, file: TextFile, seed: int) -> Iterator[Document]:
    yield from shuffled(library.read(file), seed, file.path)  # read when the first is wanted


def own_documents(source: str, library: Library) -> list[Document]:
    """The user's documents: FILE.txt, FILE.jsonl or hf:DATASET."""
    if source.startswith(PREFIX):
        return read_hub_dataset(source)
    path = user_path(source)
    if not path.suffix and not path.exists():
        raise UsageError(
            f"--calib {source}: neither a file nor one of {', '.join(library.mixtures)}.",
            hint="--calib general, --calib FILE.txt, --calib FILE.jsonl or --calib hf:DATASET",
        )
    return read_user_file(path)


def shuffled(items: Sequence[T], seed: int, *labels: str) -> list[T]:
    """Items in an order that the seed and the labels decide.

    Python hashes string seeds by sha512, on every machine.
    """
    ordered = list(items)
    random.Random("/".join([str(seed), *labels])).shuffle(ordered)  # noqa: S311 - no secret
    return ordered


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
