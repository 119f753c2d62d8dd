from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.calibration.documents import Plain
from gemquant.calibration.text import Library, largest_remainder
from gemquant.errors import CalibrationError


def test_files_are_found_by_kind_and_split(small_library: Library):
    assert [file.name for file in small_library.of("english", "calibration")] == [
        "english-a",
        "english-b",
    ]


def test_slices_are_the_kinds_with_evaluation_text(small_library: Library):
    assert small_library.slices() == ("english", "code")


def test_a_file_is_read_as_documents(small_library: Library):
    (file,) = small_library.of("code", "evaluation")
    assert small_library.read(file)[1] == Plain("oa1 oa1 oa1 oa1 oa1 ")


def test_a_changed_file_is_found(small_library: Library):
    (file,) = small_library.of("code", "evaluation")
    path = small_library.folder / file.path
    path.write_bytes(path.read_bytes().replace(b"oa1", b"oa9"))
    with pytest.raises(CalibrationError, match="is not that of the index") as raised:
        small_library.read(file)
    assert raised.value.hint == "Reinstall gemquant, or take the folder from its source again."


def test_a_missing_file_is_an_error(small_library: Library):
    (file,) = small_library.of("code", "evaluation")
    (small_library.folder / file.path).unlink()
    with pytest.raises(CalibrationError, match=r"code-a\.jsonl: cannot be read"):
        small_library.read(file)


def test_a_missing_index_is_an_error(tmp_path: Path):
    with pytest.raises(CalibrationError, match=r"index\.toml: cannot be read"):
        Library.open(tmp_path)


BROKEN = {
    "version": ("version = 1", "version = 2", "version: Input should be 1"),
    "shares": ("chat = 0.25", "chat = 0.5", "mixture general add up to 1.25, not 1"),
    "key": ("package_path", "package_place", "files.0.package_path: Field required"),
    "path": ('path = "evaluation/', 'path = "../', "leads out of the folder"),
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_a_broken_index_is_refused(library_folder: Path, what: str):
    old, new, why = BROKEN[what]
    index = library_folder / "index.toml"
    index.write_text(index.read_text().replace(old, new))
    with pytest.raises(CalibrationError, match=why):
        Library.open(library_folder)


def test_windows_are_shared_out_by_largest_remainder():
    shares = {"english": 0.4, "old": 0.08, "code": 0.16, "multi": 0.16, "chat": 0.12, "math": 0.08}
    assert largest_remainder(shares, 16) == {
        "english": 6,
        "old": 1,
        "code": 3,
        "multi": 3,
        "chat": 2,
        "math": 1,
    }


def test_one_window_goes_to_the_largest_share():
    assert largest_remainder({"chat": 0.3, "english": 0.7}, 1) == {"chat": 0, "english": 1}
