"""The sample is assembled once, checked, and never left half written."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from gemquant.errors import CheckpointError, OutputError, RuntimeMissingError, UsageError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.checkpoint.sample import Sample, assembled, cache_folder

CONTENT = b"abcdef" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sample(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """A sample whose package holds CONTENT in two parts."""
    parts = [tmp_path / "part0", tmp_path / "part1"]
    parts[0].write_bytes(CONTENT[:1000])
    parts[1].write_bytes(CONTENT[1000:])
    package = ModuleType("tiny_sample_package")
    package.chunk_paths = lambda: parts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_sample_package", package)
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Sample("tiny==1", "tiny_sample_package", "tiny.gguf", digest, "google/tiny", "gemma")


def test_the_parts_become_one_file_in_the_cache(sample: Sample, cache: Path) -> None:
    assert assembled(sample) == cache / "tiny.gguf"
    assert (cache / "tiny.gguf").read_bytes() == CONTENT


def test_a_cached_file_needs_no_package(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    path = assembled(sample)
    monkeypatch.setitem(sys.modules, "tiny_sample_package", None)
    assert assembled(sample) == path


def test_a_damaged_cached_file_is_replaced(sample: Sample) -> None:
    assembled(sample).write_bytes(b"damaged")
    assert assembled(sample).read_bytes() == CONTENT


def test_several_at_once_agree_and_leave_one_file(sample: Sample, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(assembled, [sample] * 16))
    assert paths == {cache / "tiny.gguf"}
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf"]


def test_parts_that_were_changed_are_refused_and_nothing_is_left(
    sample: Sample, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "part1").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="the assembled sample has sha256"):
        assembled(sample)
    assert list(cache.iterdir()) == []


def test_a_missing_part_is_named(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "part1").unlink()
    with pytest.raises(CheckpointError, match="lacks part1"):
        assembled(sample)


def test_a_missing_package_gives_the_pip_command(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tiny_sample_package", None)
    with pytest.raises(RuntimeMissingError, match="not installed") as caught:
        assembled(sample)
    assert caught.value.hint == "pip install tiny==1"


def test_a_cache_that_cannot_be_written_is_named(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEMQUANT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written") as caught:
        assembled(sample)
    assert caught.value.hint is not None
    assert "GEMQUANT_CACHE" in caught.value.hint


def test_an_unknown_sample_lists_the_known() -> None:
    with pytest.raises(UsageError, match="sample:gemma-9: the samples are gemma-3-270m"):
        open_checkpoint("sample:gemma-9")


def test_the_cache_follows_the_platforms_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMQUANT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "gemquant"
