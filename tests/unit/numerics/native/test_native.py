import subprocess
import sys

import pytest

from gemquant.numerics import native
from gemquant.numerics.native import build


@pytest.fixture
def unloaded():
    native._loaded.cache_clear()
    yield
    native._loaded.cache_clear()


def test_off_by_the_environment_says_so(monkeypatch, unloaded):
    monkeypatch.setenv("GEMQUANT_NATIVE", "off")
    assert native.library() is None
    assert native.status() == native.Status(None, "GEMQUANT_NATIVE is off")


def test_an_unknown_level_is_named(monkeypatch, unloaded):
    monkeypatch.setenv("GEMQUANT_NATIVE", "mmx")
    assert "GEMQUANT_NATIVE=mmx is none of" in native.status().reason


def test_libraries_older_than_their_sources_are_not_used(monkeypatch, unloaded):
    if native.library() is None:
        pytest.skip(native.status().reason)
    native._loaded.cache_clear()
    monkeypatch.setattr(build, "digest", lambda: "0")
    assert native.library() is None
    assert native.status().reason.endswith("is older than its sources")


def test_libraries_that_are_missing_are_not_built(monkeypatch, unloaded, tmp_path):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert native.status() == native.Status(None, "not built")
    for level in build.levels():
        (tmp_path / build.library_name(level)).write_bytes(b"of another machine")
    native._loaded.cache_clear()
    assert native.status().reason.startswith("not for this machine (")


def test_without_a_compiler_nothing_is_built_and_it_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.build(tmp_path) == []
    assert "no C compiler found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CC", f"{sys.executable} -c 'raise SystemExit(1)'")
    assert build.build(tmp_path) == []
    assert "were not built" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_building_needs_nothing_but_python(tmp_path):
    """Isolated mode: no site-packages of ours, as in pip's build environment."""
    code = f"import runpy; runpy.run_path({str(build.FOLDER / 'build.py')!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_runs_of_rows_are_all_rows_once(threads):
    seen = []
    native.over_rows(lambda start, stop: seen.extend(range(start, stop)), 10, threads=threads)
    assert sorted(seen) == list(range(10))


def test_an_error_in_a_thread_is_raised():
    def fail(start: int, stop: int) -> None:
        raise ValueError(f"rows {start} to {stop}")

    with pytest.raises(ValueError, match="rows 0 to 5"):
        native.over_rows(fail, 10, threads=2)
