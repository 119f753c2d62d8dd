"""``gemquant llamafile`` and ``gemquant verify`` of what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.tiny_multimodal import write_convertible_multimodal
from tests.helpers.tiny_runtime import write_zip_runtime
from tests.unit.cli.conftest import Run


@pytest.fixture
def files(run: Run, tmp_path: Path) -> None:
    """A tiny GGUF and a runtime in the working folder."""
    write_tiny_gguf(tmp_path / "tiny.gguf")
    write_zip_runtime(tmp_path / "runtime")


@pytest.mark.usefixtures("files")
def test_a_llamafile_is_made_and_verified(run: Run, tmp_path: Path) -> None:
    made = run("llamafile", "tiny.gguf", "--runtime", "runtime", "--mode", "chat", "-q")
    assert (made.code, made.err) == (0, "")
    assert "tiny v1.2.3" in made.out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("runtime", "tiny.gguf", "tiny.llamafile", "tiny.llamafile.json"),
    ]
    assert run("verify", "tiny.llamafile", "-q").out == "tiny.llamafile: valid\n"


@pytest.mark.usefixtures("files")
def test_a_changed_llamafile_is_not_valid(run: Run, tmp_path: Path) -> None:
    run("llamafile", "tiny.gguf", "--runtime", "runtime", "--no-run")
    with (tmp_path / "tiny.llamafile").open("ab") as file:
        file.write(b"x")
    result = run("verify", "tiny.llamafile", "-q")
    assert result.code == 6
    assert "tiny.llamafile: not valid" in result.out


@pytest.mark.usefixtures("files")
def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    result = run("llamafile", "tiny.gguf", "--runtime", "runtime", "--dry-run", "--json", "-q")
    plan = json.loads(result.out)
    assert plan["weights"]["offset"] == 65536
    assert plan["starts_on_windows"] is True
    assert plan["arguments"] == ["-m", "/zip/tiny.gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runtime", "tiny.gguf"]


@pytest.mark.usefixtures("files")
def test_json_holds_the_record(run: Run, tmp_path: Path) -> None:
    arguments = ["--arg", "-c", "--arg", "8192", "-o", "g", "--json", "-q"]
    result = run("llamafile", "tiny.gguf", "--runtime", "runtime", *arguments)
    document = json.loads(result.out)
    assert document["record"] == json.loads((tmp_path / "g.json").read_bytes())
    assert document["arguments"][-2:] == ["-c", "8192"]
    assert document["not_run"] is None


@pytest.mark.usefixtures("files")
def test_an_argument_that_older_runtimes_misread_is_pointed_out(run: Run) -> None:
    arguments = ["--arg", "-p", "--arg", "Be brief.", "--no-run"]
    result = run("llamafile", "tiny.gguf", "--runtime", "runtime", *arguments)
    assert (
        "caution: only llamafile 0.10 and later reads an argument with spaces or quotes"
        in result.err
    )


@pytest.mark.usefixtures("files")
def test_a_runtime_that_cannot_run_here_is_a_caution(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runtime").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    result = run("llamafile", "tiny.gguf", "--runtime", "runtime")
    assert result.code == 0
    assert "caution: not run: " in result.err


@pytest.mark.parametrize("external", [False, True])
def test_towers_are_packed_with_the_weights(run: Run, tmp_path: Path, *, external: bool) -> None:
    write_zip_runtime(tmp_path / "runtime")
    model = write_convertible_multimodal(tmp_path, "gemma3")
    assert run("gguf", str(model), "--type", "Q8_0", "--no-eval", "-o", "out").code == 0
    text, towers = f"{model.name}-Q8_0.gguf", f"mmproj-{model.name}-F16.gguf"
    (tmp_path / "made").mkdir()
    flags = ["--runtime", "runtime", "-o", "made/g", "--json", "-q"]
    flags += ["--external"] if external else []
    made = json.loads(run("llamafile", "out", *flags).out)
    where = "" if external else "/zip/"
    assert made["arguments"] == ["-m", where + text, "--mmproj", where + towers]
    record = made["record"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert record["towers"]["sha256"] == manifest["files"][towers]["sha256"]
    assert (record["towers"]["offset"] is None) is external
    assert run("verify", "made/g", "-q").out == "made/g: valid\n"
    if external:
        (tmp_path / "made" / towers).write_bytes(b"x")
    else:
        packed = bytearray((tmp_path / "made" / "g").read_bytes())
        packed[record["towers"]["offset"] + 1000] ^= 1
        (tmp_path / "made" / "g").write_bytes(packed)
    assert run("verify", "made/g", "-q").code == 6

    blind = run(
        "llamafile", "out", "--mmproj", "none", "--runtime", "runtime", "--dry-run", "--json"
    )
    assert json.loads(blind.out)["arguments"] == ["-m", f"/zip/{text}"]


def test_everything_that_is_wrong_is_said_at_once(run: Run) -> None:
    result = run("llamafile", "nowhere.gguf", "--runtime", "https://example.com/llamafile")
    assert result.code == 3
    assert "nowhere.gguf: no such file" in result.err
    assert "a URL needs --sha256" in result.err


@pytest.mark.usefixtures("files")
def test_a_runtime_with_another_hash_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("llamafile", "tiny.gguf", "--runtime", "runtime", "--sha256", "0" * 64)
    assert result.code == 6
    assert "is not the expected file" in result.err
    assert not (tmp_path / "tiny.llamafile").exists()
