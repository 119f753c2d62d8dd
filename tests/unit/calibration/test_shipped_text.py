"""What calib_data itself promises."""

from __future__ import annotations

from collections import Counter

import pytest

from gemquant.calibration.documents import Conversation, Document, Plain
from gemquant.calibration.text import Library

KINDS = {"english", "english-old", "code", "multilingual", "chat", "math"}
LICENSES = {
    "LicenseRef-Public-Domain",
    "CC0-1.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "PSF-2.0",
    "Apache-2.0",
    "MIT",
    "MIT OR Apache-2.0",
    "MIT OR Unlicense",
    "BSD-3-Clause",
}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library.open()


@pytest.fixture(scope="module")
def documents(library: Library) -> dict[str, list[Document]]:
    """Every document by file; reading checks every sha256."""
    return {file.path: library.read(file) for file in library.files}


def test_the_mixtures_are_named():
    assert tuple(Library.open().mixtures) == ("general", "chat", "code", "multilingual")


def test_the_evaluation_slices_are_named():
    assert Library.open().slices() == (
        "english",
        "english-old",
        "code",
        "multilingual",
        "chat",
        "math",
    )


def test_every_mixture_takes_known_kinds(library: Library):
    assert set(library.mixtures["general"]) == KINDS
    assert set().union(*library.mixtures.values()) == KINDS


def test_the_index_counts_documents_and_bytes(library: Library, documents):
    for file in library.files:
        assert (file.documents, file.bytes) == (
            len(documents[file.path]),
            (library.folder / file.path).stat().st_size,
        )


def test_no_file_is_outside_the_index(library: Library):
    found = {
        path.relative_to(library.folder).as_posix() for path in library.folder.glob("*/*.jsonl")
    }
    assert found == {file.path for file in library.files}


@pytest.mark.parametrize(("split", "least"), [("calibration", 400_000), ("evaluation", 150_000)])
def test_each_kind_has_enough_text(library: Library, split: str, least: int):
    sizes = Counter[str]()
    for file in library.files:
        if file.split == split:
            sizes[file.kind] += file.bytes
    assert set(sizes) == KINDS
    assert min(sizes.values()) > least


def test_every_licence_is_a_known_one(library: Library):
    assert {file.license for file in library.files} == LICENSES
    assert all(file.attribution and file.package_sha256 for file in library.files)


def test_only_chat_holds_conversations(library: Library, documents):
    for file in library.files:
        wanted = Conversation if file.kind == "chat" else Plain
        assert all(isinstance(document, wanted) for document in documents[file.path])


def test_no_text_spells_a_special_token(documents):
    for path, own in documents.items():
        text = "".join(map(_words, own))
        assert not any(token in text for token in ("<bos>", "<eos>", "<start_of_turn>")), path


def test_calibration_and_evaluation_share_no_run_of_200_characters(library: Library, documents):
    # A shared run of 200 covers one of the blocks of 100 that follow each other in calibration.
    blocks = set()
    for file in library.files:
        if file.split == "calibration":
            for text in map(_words, documents[file.path]):
                blocks.update(text[at : at + 100] for at in range(0, len(text) - 99, 100))
    for file in library.files:
        if file.split == "evaluation":
            for text in map(_words, documents[file.path]):
                shingles = (text[at : at + 100] for at in range(len(text) - 99))
                assert blocks.isdisjoint(shingles), file.path


def test_calibration_and_evaluation_share_no_source_file(library: Library):
    sources = {"calibration": set(), "evaluation": set()}
    for file in library.files:
        if file.name != "small-talk":  # one corpus of many small files, divided by file
            sources[file.split].add((file.package, file.package_path))
    assert sources["calibration"].isdisjoint(sources["evaluation"])


def _words(document: Document) -> str:
    if isinstance(document, Plain):
        return " ".join(document.text.split())
    return " ".join(" ".join(message["content"] for message in document.messages).split())
