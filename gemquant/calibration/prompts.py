"""Calibration text as prompts and answers, for tools that take no token windows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from gemquant.calibration.documents import Conversation, Document
from gemquant.calibration.text import Library, largest_remainder
from gemquant.calibration.windows import Tokenizer, own_documents, shipped_documents, shuffled
from gemquant.errors import CalibrationError
from gemquant.models.chat import ChatTemplate, render


def calibration_prompts(
    tokenizer: Tokenizer,
    *,
    source: str,
    samples: int,
    seq_len: int,
    seed: int,
    chat_template: ChatTemplate,
) -> list[dict[str, str]]:
    """Return ``samples`` pairs {"input": …, "target": …} of a mixture or of the user's own text.

    A conversation becomes a prompt up to its last answer, as the chat template writes it, ``<bos>``
    included, and that answer; plain text a prompt without one. Both are cut to seq_len tokens.
    """
    library = Library.open()
    cutter = _Cutter(tokenizer, seq_len, chat_template)
    pairs: list[dict[str, str]] = []
    if source in library.mixtures:
        for kind, count in largest_remainder(library.mixtures[source], samples).items():
            shipped = shipped_documents(library, kind, "calibration", seed)
            # One piece of each, so that many sources contribute.
            firsts = (piece for each in shipped for piece in islice(cutter.pieces(each), 1))
            pairs += _first(firsts, count, f"{source}, {kind} text")
    else:
        documents = shuffled(own_documents(source, library), seed, "documents")
        pieces = (piece for document in documents for piece in cutter.pieces(document))
        pairs = _first(pieces, samples, f"--calib {source}")
    return shuffled(pairs, seed, "prompts")


def _first(pairs: Iterator[dict[str, str]], count: int, what: str) -> list[dict[str, str]]:
    prompts = list(islice(pairs, count))
    if len(prompts) < count:
        raise CalibrationError(
            f"{what}: enough for {len(prompts)} prompts, but {count} are needed.",
            hint="Give more text, or fewer --samples.",
        )
    return prompts


@dataclass(frozen=True)
class _Cutter:
    tokenizer: Tokenizer
    seq_len: int
    chat_template: ChatTemplate

    def pieces(self, document: Document) -> Iterator[dict[str, str]]:
        """Pairs of a document: one of a conversation that ends in an answer; of a text, many."""
        if isinstance(document, Conversation):
            *context, last = document.messages
            if context and last["role"] == "assistant":
                yield from self._answered(context, last["content"])
            return
        text = document.text.strip()
        while text:
            head = self._cut(text, self.seq_len)
            if not head:
                return  # a single word longer than a window
            yield {"input": head, "target": ""}
            text = text[len(head) :].lstrip()

    def _answered(
        self, context: Sequence[Mapping[str, str]], answer: str
    ) -> Iterator[dict[str, str]]:
        prompt = render(self.chat_template, context, add_generation_prompt=True)
        room = self.seq_len - self._tokens(prompt)
        if room > 0:
            yield {"input": prompt, "target": self._cut(answer, room)}

    def _cut(self, text: str, tokens: int) -> str:
        """The longest beginning of a text, at a space, of no more tokens than that."""
        # No token of Gemma's is longer than some sixty characters.
        ends = [m.start() for m in re.finditer(r"\s+|$", text[: 64 * tokens])]
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            if self._tokens(text[: ends[middle]]) <= tokens:
                low = middle + 1
            else:
                high = middle
        return text[: ends[low - 1]] if low else ""

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)
