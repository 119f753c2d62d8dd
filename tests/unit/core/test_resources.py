"""Resources: folders, cores and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.core import resources
from gemquant.errors import UsageError


@pytest.mark.parametrize("name", ["calib_data", "targets"])
def test_a_checkout_keeps_its_data_beside_the_package(name: str) -> None:
    assert resources.data_folder(name) == Path(__file__).parents[3] / name


def test_a_wheel_keeps_its_data_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "gemquant")
    assert resources.data_folder("targets") == tmp_path / "gemquant" / "_data" / "targets"


def test_the_cache_may_be_put_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMQUANT_CACHE", "/somewhere/else")
    assert resources.cache_folder() == Path("/somewhere/else")


def test_there_is_at_least_one_thread_and_no_more_than_processors() -> None:
    import os

    assert 1 <= resources.default_threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (15_744, "15.7 kB"),
        (268_435_456, "268 MB"),
        (999_600_000, "1.00 GB"),
        (7_200_000_000_000_000, "7200 TB"),
    ],
)
def test_sizes_have_three_figures(count: int, words: str) -> None:
    assert resources.human_bytes(count) == words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8_000_000_000),
        ("8GB", 8_000_000_000),
        ("8gb", 8_000_000_000),
        ("8GiB", 8 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 kB", 1_500),
        ("2T", 2_000_000_000_000),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert resources.parse_size(text, flag="--memory") == size


def test_a_number_alone_is_no_size() -> None:
    with pytest.raises(UsageError) as raised:
        resources.parse_size("8", flag="--memory")
    assert str(raised.value) == "--memory 8: 8 what?\n  hint: As in: --memory 8GB"
