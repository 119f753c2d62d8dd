"""Calibration text as prompts and answers, for tools that take no token windows."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice

from gemquant.calibration.documents import Conversation, Document
from gemquant.calibration.text import Library, largest_remainder
from gemquant.calibration.windows import Packer, own_documents, shipped_documents, shuffled
from gemquant.errors import CalibrationError
from gemquant.models.chat import render


def calibration_prompts(packer: Packer, source: str, samples: int) -> list[dict[str, str]]:
    """Return ``samples`` pairs {"input": …, "target": …} of a mixture or of the user's own text.

    A conversation becomes a prompt up to its last answer, as the chat template writes it, ``<bos>``
    included, and that answer; plain text a prompt without one. Both are cut to the window's length.
    """
    library, seed = Library.open(), packer.seed
    pairs: list[dict[str, str]] = []
    if source in library.mixtures:
        for kind, count in largest_remainder(library.mixtures[source], samples).items():
            shipped = shipped_documents(library, kind, "calibration", seed)
            # One piece of each, so that many sources contribute.
            firsts = (piece for each in shipped for piece in islice(_pieces(packer, each), 1))
            pairs += _first(firsts, count, f"{source}, {kind} text")
    else:
        documents = shuffled(own_documents(source, library), seed, "documents")
        pieces = (piece for document in documents for piece in _pieces(packer, document))
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


def _pieces(packer: Packer, document: Document) -> Iterator[dict[str, str]]:
    """Pairs of a document: one of a conversation that ends in an answer; of a text, many."""
    if isinstance(document, Conversation):
        *context, last = document.messages
        if context and last["role"] == "assistant":
            assert packer.chat_template is not None
            prompt = render(packer.chat_template, context, add_generation_prompt=True)
            room = packer.seq_len - _count(packer, prompt)
            if room > 0:
                yield {"input": prompt, "target": _cut(packer, last["content"], room)}
        return
    text = document.text.strip()
    # Nothing is cut from a single word that is longer than a window.
    while text and (head := _cut(packer, text, packer.seq_len)):
        yield {"input": head, "target": ""}
        text = text[len(head) :].lstrip()


def _cut(packer: Packer, text: str, tokens: int) -> str:
    """The longest beginning of a text, at a space, of no more tokens than that."""
    # No token of Gemma's is longer than some sixty characters.
    ends = [m.start() for m in re.finditer(r"\s+|$", text[: 64 * tokens])]
    fitting = bisect_right(ends, tokens, key=lambda end: _count(packer, text[:end]))
    return text[: ends[fitting - 1]] if fitting else ""


def _count(packer: Packer, text: str) -> int:
    return len(packer.tokenizer.encode(text, add_special_tokens=False).ids)
