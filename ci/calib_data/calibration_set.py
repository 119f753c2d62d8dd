"""The calibration files."""

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
PSF = "Copyright 2001-2023 Python Software Foundation"
WIKIPEDIA = "Wikipedia contributors; summaries of articles, changed only in white space"
HANDBOOK = "Raphaël Hertzog, Roland Mas, Freexian SARL and translators; excerpts of the text"

LANGUAGES = {
    "ar-MA": 40, "ca-ES": 30, "cs-CZ": 30, "de-DE": 110, "es-ES": 110, "fa-IR": 40, "fr-FR": 110,
    "id-ID": 50, "it-IT": 60, "ja-JP": 110, "nb-NO": 30, "nl-NL": 40, "pl-PL": 50, "pt-BR": 80,
    "ru-RU": 110, "sv-SE": 30, "tr-TR": 30, "vi-VN": 40, "zh-CN": 110, "zh-TW": 30,
}
"""Kilobytes of the handbook by language."""

TALK = (
    "english/[!ahlpst]*.yml", "english/tech_support.yml", "german/[!cm]*.yml", "italian/*.yml",
    "portuguese/*.yml", "spanish/[!ct]*.yml", "russian/*.yml", "chinese/[!l]*.yml", "dutch/*.yml",
)



def entries() -> list[Entry]:
    """Every calibration file."""
    rust_html, handbook = f"{DOC}/rust-doc/html", f"{DOC}/debian-handbook/html"
    gopl, penlight = "usr/share/go-1.19/src", "usr/share/lua/5.4/pl"
    crate = "usr/share/cargo/registry/regex-syntax-*"
    return [
        Entry(
            "factbook", "english", "calibration", s.FACTBOOK, "package/*/*.json",
            "LicenseRef-Public-Domain", "The World Factbook, Central Intelligence Agency",
            480, prose.factbook,
        ),
        Entry(
            "encyclopedia", "english", "calibration", s.WIKI, "data/summaries_en-us.json (half)",
            "CC-BY-SA-4.0", WIKIPEDIA,
            450, lambda r: prose.articles(r, "en-us", half=0),
        ),
        Entry(
            "rust-book", "english", "calibration", s.RUST, f"{rust_html}/book/ch*.html",
            "MIT OR Apache-2.0", "The Rust Project Developers: The Rust Programming Language",
            220, lambda r: prose.pages(r, f"{rust_html}/book/ch*.html"),
            f"{rust_html}/LICENSE-MIT.txt",
        ),
        Entry(
            "handbook-en", "english", "calibration", s.HANDBOOK, f"{handbook}/en-US/sect.*.html",
            "CC-BY-SA-3.0", HANDBOOK,
            180, lambda r: languages.handbook(r, "en-US"),
        ),
        Entry(
            "sqlite-doc", "english", "calibration", s.SQLITE, f"{DOC}/sqlite3/*.html",
            "LicenseRef-Public-Domain", "The SQLite project",
            150, prose.database_articles,
        ),
        Entry(
            "austen", "english-old", "calibration", s.AUSTEN, "janeaustenr/data/Rdata.rdb",
            "LicenseRef-Public-Domain", "Jane Austen: six novels, 1811-1818",
            450, prose.novels,
        ),
        Entry(
            "shakespeare", "english-old", "calibration", s.SHAKESPEARE,
            "shksprdata/texts/*_gut.txt",
            "LicenseRef-Public-Domain", "William Shakespeare: plays and poems",
            300, lambda r: prose.plays(r, "*/shksprdata/texts/*_gut.txt"),
        ),
        Entry(
            "king-james", "english-old", "calibration", s.KJV, "usr/lib/bible.data",
            "LicenseRef-Public-Domain", "The Bible, King James Version, 1611",
            150, prose.scripture,
        ),
        Entry(
            "python", "code", "calibration", s.STDLIB, "usr/lib/python3.11/**/*.py",
            "PSF-2.0", PSF,
            350, lambda r: programs.sources(r, "usr/lib/python3.11/**/*.py"),
            "usr/lib/python3.11/LICENSE.txt",
        ),
        Entry(
            "go", "code", "calibration", s.GO,
            f"{gopl}/{{net,encoding,strings,sort,bufio}}/**/*.go",
            "BSD-3-Clause", "Copyright 2009 The Go Authors",
            200, lambda r: programs.sources(
                r, *(f"{gopl}/{p}/**/*.go" for p in ("net", "encoding", "strings", "sort", "bufio"))
            ),
            f"{DOC}/golang-1.19-src/copyright",
        ),
        Entry(
            "typescript", "code", "calibration", s.RXJS, "package/src/internal/**/*.ts",
            "Apache-2.0", "Copyright 2015-2018 Google, Inc., Netflix, Inc., Microsoft Corp.",
            150, lambda r: programs.sources(r, "package/src/internal/**/*.ts"),
            "package/LICENSE.txt",
        ),
        Entry(
            "rust", "code", "calibration", s.REGEX, f"{crate}/src/**/*.rs",
            "MIT OR Apache-2.0", "Copyright 2014 The Rust Project Developers",
            150, lambda r: programs.sources(r, f"{crate}/src/**/*.rs", leave_out="unicode"),
            f"{DOC}/librust-regex-syntax-dev/copyright",
        ),
        Entry(
            "c", "code", "calibration", s.STB, "usr/include/stb/stb_*.h",
            "MIT OR Unlicense", "Copyright 2017 Sean Barrett and contributors",
            150, lambda r: programs.sources(r, "usr/include/stb/stb_*.h"),
            f"{DOC}/libstb-dev/copyright",
        ),
        Entry(
            "lua", "code", "calibration", s.PENLIGHT, f"{penlight}/*.lua",
            "MIT", "Copyright 2009-2022 Steve Donovan, David Manura, Thijs Schreijer",
            60, lambda r: programs.sources(r, f"{penlight}/*.lua"),
            f"{DOC}/lua-penlight/copyright",
        ),
        Entry(
            "ruby", "code", "calibration", s.RACK, "usr/**/lib/rack/**/*.rb",
            "MIT", "Copyright 2007-2021 Leah Neukirchen and contributors",
            60, lambda r: programs.sources(r, "usr/**/lib/rack/**/*.rb"),
            f"{DOC}/ruby-rack/copyright",
        ),
        *(_handbook(language) for language in LANGUAGES),
        Entry(
            "small-talk", "chat", "calibration", s.CHATTERBOT, "data/*/*.yml (half)",
            "BSD-3-Clause", "Copyright Gunther Cox and contributors",
            200, lambda r: dialogue.small_talk(r, *TALK),
        ),
        Entry(
            "compiler-errors", "chat", "calibration", s.RUST, f"{rust_html}/error-index.html",
            "MIT OR Apache-2.0", "The Rust Project Developers: error index; questions added",
            220, dialogue.compiler_errors,
            f"{rust_html}/LICENSE-MIT.txt",
        ),
        Entry(
            "encyclopedia-chat", "chat", "calibration", s.WIKI, "data/summaries_en-us.json (half)",
            "CC-BY-SA-4.0", WIKIPEDIA + "; questions added",
            200, lambda r: dialogue.about_articles(r, 1),
        ),
        Entry(
            "exercises", "chat", "calibration", s.MATHGENERATOR, "mathgenerator/funcs",
            "MIT", "Generated with mathgenerator, copyright 2020 Luke Weiler and contributors",
            60, dialogue.exercises, "*.dist-info/LICENSE",
        ),
        Entry(
            "sympy-doc", "math", "calibration", s.SYMPY, f"{DOC}/python-sympy-doc/html/**/*.html",
            "BSD-3-Clause", "Copyright 2006-2022 SymPy Development Team",
            350, lambda r: mathematics.with_formulas(
                prose.pages(r, f"{DOC}/python-sympy-doc/html/modules/**/*.html")
            ),
            f"{DOC}/python-sympy-doc/copyright",
        ),
        Entry(
            "set-theory", "math", "calibration", s.METAMATH, "databases/set.mm",
            "CC0-1.0", "The Metamath contributors: set.mm, statements without proofs",
            130, lambda r: mathematics.statements(r / "usr/share/metamath/databases/set.mm"),
        ),
        Entry(
            "problem-sheets", "math", "calibration", s.MATHGENERATOR, "mathgenerator/funcs",
            "MIT", "Generated with mathgenerator, copyright 2020 Luke Weiler and contributors",
            60, lambda r: mathematics.problem_sheets(r, each=8),
        ),
    ]


def _handbook(language: str) -> Entry:
    return Entry(
        f"handbook-{language.lower()}", "multilingual", "calibration", s.HANDBOOK,
        f"{DOC}/debian-handbook/html/{language}/sect.*.html",
        "CC-BY-SA-3.0", HANDBOOK,
        LANGUAGES[language], lambda r: languages.handbook(r, language),
    )
