"""Texts to compare tokenizers on: all of Unicode, whitespace, code, tags, emoji, long words."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.helpers.tiny_sentencepiece import sentences

_EMOJI = "😀 👍🏽 👩‍💻 👨‍👩‍👧‍👦 🇺🇦 🇩🇪 ❤️ ☺️ 1️⃣ 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🫠 ✨".split()
_SPACES = (
    " ",
    "\n",
    "\t",
    "\r",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\v",
    "\f",
    "\x85",
    "\ufeff",
)
_MARKUP = (
    "<table>",
    "</table>",
    "<code>",
    "</code>",
    "<b>",
    "</s>",
    "<s>",
    "<h1>",
    "<unused3>",
    "<mask>",
    "<2mass>",
    "[@BOS@]",
)
_TURNS = ("<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "[multimodal]")
_ALMOST = (
    "<0x41>",
    "<0xFF>",
    "<start_of_turn",
    "end_of_turn>",
    "<bos",
    "< bos >",
    "<unused>",
    "<|x|>",
)
_BLOCK = 0x80
_STRANGE = ("Cs", "Cn")


def unicode_blocks(*, seed: int) -> Iterator[str]:
    """Yield a text for every 128 code points that hold a character: some of these, with spaces."""
    draw = random.Random(seed)
    for start in range(0, 0x110000, _BLOCK):
        if start >= 0xF0000 and start % 0x8000:
            continue  # private use without end
        found = [
            chr(code)
            for code in range(start, start + _BLOCK)
            if unicodedata.category(chr(code)) not in _STRANGE
        ]
        if found:
            yield "".join(draw.choice(found) + draw.choice(("", "", "", " ")) for _ in range(24))


def whitespace() -> Iterator[str]:
    """Yield runs of one space after another, up to 100, alone, before, after and between words."""
    for space in _SPACES:
        for count in (*range(1, 36), 40, 61, 62, 63, 64, 65, 93, 100):
            run = space * count
            yield run
            yield f"word{run}Word"
            yield f"{run}({run}"
    for left in _SPACES:
        for right in _SPACES:
            yield f"a{left * 2}{right * 3}{left}b"


def code() -> Iterator[str]:
    """Yield pieces of this package's own source and of JSON."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        yield from (source[start : start + 400] for start in range(0, len(source), 400))
    tree = {"a": [1, 2.5e-3, {"β": None, "c": [True] * 3}], "long": "x" * 40}
    yield json.dumps(tree)
    yield json.dumps(tree, indent=4)


def words(*, seed: int) -> Iterator[str]:
    """Yield long words: one letter repeated, letters at random, digits, addresses, hashes."""
    draw = random.Random(seed)
    for letter in "aAzß=-_.#*~0é世あ가":
        yield from (letter * count for count in (2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 1000))
    for _ in range(100):
        alphabet = draw.choice(
            ("ab", "abcdefgh", "aeiou", "0123456789abcdef", "ACGT", "()[]{}", "ぁあぃ")
        )
        yield "".join(draw.choice(alphabet) for _ in range(draw.randint(20, 200)))
    yield "https://example.org/a_b-c/%7Ed?e=f&g=h#i" * 3
    yield "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    yield "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" * 2


def special(*, seed: int) -> Iterator[str]:
    """Yield texts around special tokens, tags, and what only looks like them."""
    draw = random.Random(seed)
    for token in (*_TURNS, *_MARKUP, *_ALMOST):
        yield token
        yield f"a{token}b"
        yield f" {token} "
        yield token * 3
    parts = (*_TURNS, *_MARKUP, *_ALMOST, *_EMOJI, " ", "  ", "\n", "\n\n", "word", "Wort", "語")
    for _ in range(300):
        yield "".join(draw.choice(parts) for _ in range(draw.randint(2, 20)))
    yield "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nGood morning."


def raw(*, seed: int) -> Iterator[str]:
    """Yield characters at random from all of Unicode, control characters and combining marks."""
    draw = random.Random(seed)
    yield "\0"
    yield "a\0b\0\0c"
    yield "".join(map(chr, range(32)))
    yield "".join(map(chr, range(127, 160)))
    yield "e" + "\u0301" * 20
    for _ in range(200):
        yield "".join(
            chr(code)
            for code in (draw.randrange(0x110000) for _ in range(30))
            if not 0xD800 <= code < 0xE000
        )


def every_text() -> Sequence[str]:
    """Return all of these once: over 4000."""
    texts = [
        *unicode_blocks(seed=1),
        *whitespace(),
        *code(),
        *words(seed=2),
        *special(seed=3),
        *raw(seed=4),
        *sentences(1000, seed=5),
        *_EMOJI,
        " ".join(_EMOJI),
        "".join(_EMOJI),
        "",
    ]
    return list(dict.fromkeys(texts))
