from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gemquant.core.artifact import output_problems, staged
from gemquant.errors import OutputError, Problems


def make(out: Path, content: str, *, force: bool = False) -> None:
    with staged(out, force=force, needed_bytes=1) as folder:
        (folder / "manifest.json").write_text(content)


def test_the_folder_stands_only_after_success(tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    with staged(out, force=False, needed_bytes=1) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("content")
        assert not out.exists()
    assert (out / "sub" / "file").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with staged(tmp_path / "a", force=False, needed_bytes=1) as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_missing_parents_are_made_and_taken_back(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="stop"),
        staged(tmp_path / "new" / "er" / "a", force=False, needed_bytes=1),
    ):
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "new" / "er" / "a", "x")
    assert (tmp_path / "new" / "er" / "a" / "manifest.json").exists()


def test_an_existing_artifact_is_not_replaced_without_force(tmp_path: Path) -> None:
    make(tmp_path / "a", "old")
    with pytest.raises(OutputError, match="exists") as caught:
        make(tmp_path / "a", "new")
    assert caught.value.hint == "Give --force to replace it, or another -o."
    assert (tmp_path / "a" / "manifest.json").read_text() == "old"


def test_force_replaces_an_artifact_and_leaves_no_trace(tmp_path: Path) -> None:
    make(tmp_path / "a", "old")
    make(tmp_path / "a", "new", force=True)
    assert (tmp_path / "a" / "manifest.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_old_artifact_survives_a_failed_replacement(tmp_path: Path) -> None:
    make(tmp_path / "a", "old")
    with (
        pytest.raises(KeyboardInterrupt),
        staged(tmp_path / "a", force=True, needed_bytes=1),
    ):
        raise KeyboardInterrupt
    assert (tmp_path / "a" / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_old_artifact_comes_back_if_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        make(tmp_path / "a", "new", force=True)
    assert (tmp_path / "a" / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_force_never_replaces_what_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(OutputError, match="--force replaces artifacts only"):
        make(tmp_path / "home", "x", force=True)
    assert (tmp_path / "home" / "letters.txt").exists()


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(OutputError, match="is a symbolic link"):
        make(tmp_path / "link", "new", force=True)


def test_a_place_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is not a folder"):
        make(tmp_path / "file" / "a", "x")


def test_a_place_that_cannot_be_written_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="/proc"):
        make(Path("/proc/gemquant"), "x")


def test_every_problem_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a", "old")
    usage = shutil.disk_usage(tmp_path)._replace(free=1_500_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with (
        pytest.raises(Problems) as caught,
        staged(tmp_path / "a", force=False, needed_bytes=2_000_000_000),
    ):
        pass
    messages = [problem.message for problem in caught.value.problems]
    assert messages == [
        f"{tmp_path / 'a'} exists.",
        f"{tmp_path / 'a'} needs 2.00 GB; 1.50 GB are free.",
    ]


def test_looking_for_problems_touches_nothing(tmp_path: Path) -> None:
    assert output_problems(tmp_path / "new" / "a", force=False, needed_bytes=1) == []
    assert list(tmp_path.iterdir()) == []


def test_no_other_user_enters_the_scratch_folder_and_the_artifact_has_the_usual_rights(
    tmp_path: Path,
) -> None:
    before = os.umask(0o027)
    try:
        with staged(tmp_path / "a", force=False, needed_bytes=1) as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750


def test_a_scratch_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".a.12345678.partial").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with (
        pytest.raises(OutputError, match=r"partial is a link, no folder, or another user's"),
        staged(tmp_path / "a", force=False, needed_bytes=1, token="12345678"),
    ):
        pass


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_scratch_folder_that_is_a_link_or_a_file_is_not_used(tmp_path: Path, kind: str) -> None:
    place = tmp_path / ".a.12345678.partial"
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to("elsewhere") if kind == "link" else place.write_text("")
    with (
        pytest.raises(OutputError, match=r"partial is a link, no folder, or another user's"),
        staged(tmp_path / "a", force=False, needed_bytes=1, token="12345678") as folder,
    ):
        (folder / "file").write_text("")
    assert list((tmp_path / "elsewhere").iterdir()) == []
