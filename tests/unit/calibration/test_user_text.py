from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.calibration import documents
from gemquant.calibration.documents import Plain, read_user_file
from gemquant.errors import CalibrationError, Problems


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_form_feeds_separate_the_documents_of_a_text_file(tmp_path: Path):
    path = _file(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n\r\n\r\nstill one\ftwo\f \n")
    assert read_user_file(path) == [Plain("one\n\n\nstill one"), Plain("two")]


def test_all_bad_lines_are_reported_at_once(tmp_path: Path):
    path = _file(tmp_path, "a.jsonl", b'{"text": "fine"}\n{\n{"text": 3}\n')
    with pytest.raises(Problems) as raised:
        read_user_file(path)
    assert [p.message.split(": ")[0].rpartition(", ")[2] for p in raised.value.problems] == [
        "line 2",
        "line 3",
    ]
    assert raised.value.exit_code == 5


def test_latin_1_is_refused_with_its_line_and_the_remedy(tmp_path: Path):
    path = _file(tmp_path, "a.txt", b"fine\ncaf\xe9\n")
    with pytest.raises(CalibrationError, match=r"a\.txt, line 2: byte 8 is not UTF-8") as raised:
        read_user_file(path)
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("Convert it: iconv")


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        read_user_file(tmp_path / "a.txt")


def test_a_folder_is_an_error(tmp_path: Path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(CalibrationError, match="Is a directory"):
        read_user_file(tmp_path / "a.txt")


def test_an_unknown_suffix_is_an_error(tmp_path: Path):
    with pytest.raises(CalibrationError, match=r"ends in \.csv; known are \.txt and \.jsonl"):
        read_user_file(_file(tmp_path, "a.csv", b"x"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(CalibrationError, match="holds no text"):
        read_user_file(_file(tmp_path, name, b"\n \n"))


def test_an_oversized_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "LARGEST_FILE", 10)
    with pytest.raises(CalibrationError, match="11 bytes; at most 10 are read"):
        read_user_file(_file(tmp_path, "a.txt", b"hello world"))
