"""GGUF files and importance matrices as a user makes them, on tiny Gemmas."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.unit.cli.conftest import Run

WIDE = {**LLAMACPP["gemma2"], "hidden_size": 256, "intermediate_size": 512}
FEW = "--threads 1 --samples 2 --seq-len 24".split()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 2 whose rows hold every block."""
    return write_tiny_gemma(tmp_path_factory.mktemp("wide") / "tiny", "gemma2", overrides=WIDE)


def data_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def test_several_types_make_a_folder_each(run: Run, model: Path) -> None:
    flags = ["--type", "Q4_K_M", "--type", "Q6_K", "-o", "out", "--eval-slices", "english"]
    made = run("gguf", str(model), *FEW, "--eval-windows", "1", *flags)
    assert made.code == 0, made.err
    head, _, first, second, _ = made.out.splitlines()
    assert head.startswith("out: 2 files of tiny (in bfloat16: ")
    assert [first.split()[0], second.split()[0]] == ["Q6_K", "Q4_K_M"]
    files = sorted(str(path) for path in Path("out").rglob("*.gguf"))
    assert files == ["out/Q4_K_M/tiny-Q4_K_M.gguf", "out/Q6_K/tiny-Q6_K.gguf"]
    assert run("verify", "out/Q4_K_M", "out/Q6_K").code == 0
    recipe = json.loads(Path("out/Q6_K/manifest.json").read_text())["recipe"]
    assert (recipe["options"]["type"], recipe["target"]) == (["Q6_K"], "cpu")
    again = run("gguf", "--recipe", "out/Q6_K/manifest.json", "-o", "again", "--no-eval", *FEW)
    assert again.code == 0, again.err
    assert Path("again/tiny-Q6_K.gguf").read_bytes() == Path("out/Q6_K/tiny-Q6_K.gguf").read_bytes()


def test_a_dry_run_tells_sizes_formats_and_what_does_not_fit(run: Run, tmp_path: Path) -> None:
    narrow = write_tiny_gemma(tmp_path / "narrow", "gemma2", overrides=LLAMACPP["gemma2"])
    told = run("gguf", str(narrow), "--type", "Q4_K_M", "-o", "out", "--dry-run", "-q").out
    for fragment in (
        "format  matrices  weights     size  bits per weight",
        "Q5_0          16  532,480   366 kB              5.5",
        "in narrow-Q4_K_M.gguf; ",
        "bits per weight over all",
        "Q5_0, 5.5 bits per weight",
        "128 columns are not a",
        "Nothing was written (--dry-run).",
    ):
        assert fragment in told
    assert not Path("out").exists()
    several = run("gguf", str(narrow), "--type", "Q4_K_M,Q8_0", "--dry-run", "--json", "-q")
    documents = json.loads(several.out)
    assert [document["path"] for document in documents] == [
        "narrow-gguf-Q4_K_M",
        "narrow-gguf-Q8_0",
    ]
    assert documents[0]["fallbacks"][0]["stored"] == "Q8_0, 8.5 bits per weight"


def test_an_importance_matrix_counts_alike_from_a_file_and_on_the_way(
    run: Run, model: Path
) -> None:
    assert run("imatrix", str(model), *FEW, "-o", "im.gguf").code == 0
    options = [str(model), "--no-eval", *FEW, "--type", "Q4_K_M"]
    assert run("gguf", *options, "--imatrix", "im.gguf", "-o", "file").code == 0
    assert run("gguf", *options, "--importance", "-o", "computed").code == 0
    assert run("gguf", *options, "-o", "plain").code == 0
    file, computed, plain = (
        data_of(Path(folder) / "tiny-Q4_K_M.gguf") for folder in ("file", "computed", "plain")
    )
    name = "blk.1.ffn_up.weight"
    assert not np.array_equal(file[name], plain[name])
    assert np.array_equal(file["token_embd.weight"], plain["token_embd.weight"])
    for name, data in file.items():
        assert np.array_equal(data, computed[name]), name
    said = gguf.GGUFReader("file/tiny-Q4_K_M.gguf").fields
    assert said["quantize.imatrix.file"].contents() == "im.gguf"
    assert said["quantize.imatrix.dataset"].contents() == "general"
    assert said["quantize.imatrix.entries_count"].contents() == 21
    assert said["quantize.imatrix.chunks_count"].contents() == 2
    manifest = json.loads(Path("computed/manifest.json").read_text())
    assert manifest["calibration"]["windows"] == 2


def test_a_long_name_of_an_importance_matrix_is_recorded_as_llama_quantize_does(
    run: Run, model: Path
) -> None:
    name = "é" * 100 + ".gguf"
    assert run("imatrix", str(model), *FEW, "-o", name).code == 0
    options = ["--type", "Q8_0", "--imatrix", name, "--no-eval", *FEW, "-o", "out"]
    assert run("gguf", str(model), *options).code == 0
    fields = gguf.GGUFReader("out/tiny-Q8_0.gguf").fields
    # The first 127 bytes, less the half of a character that would end them.
    assert fields["quantize.imatrix.file"].contents() == "é" * 63


def test_the_command_line_tells_what_an_importance_matrix_holds(run: Run, model: Path) -> None:
    told = run("imatrix", str(model), *FEW, "-o", "im.gguf", "--json", "-q")
    assert json.loads(told.out) == {
        "path": "im.gguf",
        "entries": 21,
        "tokens": 48,
        "text": "general",
        "chunks": 2,
        "chunk_tokens": 24,
    }
    refused = run("imatrix", str(model), *FEW, "-o", "im.gguf")
    assert (refused.code, "im.gguf exists" in refused.err) == (7, True)
    nothing = run("imatrix")
    assert (nothing.code, "MODEL: missing" in nothing.err, "--output" in nothing.err) == (
        2,
        True,
        True,
    )


def test_an_importance_matrix_of_another_model_is_refused(
    run: Run, model: Path, tmp_path: Path
) -> None:
    other = write_tiny_gemma(tmp_path / "other", "gemma2", overrides=LLAMACPP["gemma2"])
    run("imatrix", str(other), *FEW, "-o", "other.gguf")
    refused = run("gguf", str(model), "--imatrix", "other.gguf", "-o", "out", "--no-eval")
    assert refused.code == 2
    assert "the importance matrix is of another model" in refused.err
    assert "gemquant imatrix MODEL -o FILE" in refused.err
    assert not Path("out").exists()


def test_what_an_importance_matrix_does_not_cover_is_told(run: Run, model: Path) -> None:
    from gemquant.formats.gguf.imatrix import ImportanceMatrix, read_imatrix, write_imatrix

    run("imatrix", str(model), *FEW, "-o", "im.gguf")
    whole = read_imatrix(Path("im.gguf"))
    kept = {n: e for n, e in whole.entries.items() if "blk.2.ffn_down" not in n}
    write_imatrix(Path("part.gguf"), ImportanceMatrix(kept, ("text",), 1, 24))
    made = run("gguf", str(model), "--imatrix", "part.gguf", "-o", "out", "--no-eval")
    assert made.code == 0
    assert "no entry for 1 of 21 linears, whose columns count alike: blk.2.ffn_down" in made.err
    refused = run("gguf", str(model), "--imatrix", "part.gguf", "--type", "Q2_K_S", "--no-eval")
    assert (refused.code, "needs entries of the importance matrix" in refused.err) == (2, True)


def test_an_unknown_type_is_refused_with_what_was_meant(run: Run, model: Path) -> None:
    refused = run("gguf", str(model), "--type", "Q4_K_N", "--embedding-type", "Q9_0")
    assert refused.code == 2
    assert "--type Q4_K_N: " in refused.err
    assert "Did you mean Q4_K_S or Q4_K_M" in refused.err
    assert "--embedding-type Q9_0: " in refused.err


def test_a_gguf_is_quantized_silently_from_floats_and_with_a_caution_from_codes(
    run: Run, model: Path
) -> None:
    assert run("gguf", str(model), "--type", "BF16,Q8_0", "-o", "first", "--no-eval").code == 0
    run("gguf", str(model), "--type", "Q5_K_M", "-o", "direct", "--no-eval")
    plain = run(
        "gguf", "first/BF16/tiny-BF16.gguf", "--type", "Q5_K_M", "-o", "second", "--no-eval"
    )
    assert (plain.code, "caution" in plain.err) == (0, False)
    # The same name, the same metadata, the same tensors.
    direct, second = Path("direct/tiny-Q5_K_M.gguf"), Path("second/tiny-Q5_K_M.gguf")
    assert direct.read_bytes() == second.read_bytes()
    named = run(
        *("gguf", "--from", "first/BF16/tiny-BF16.gguf", "--type", "Q5_K_M", "-o", "named"),
        "--no-eval",
    )
    assert named.code == 0, named.err
    assert Path("named/tiny-Q5_K_M.gguf").read_bytes() == second.read_bytes()
    twice = run("gguf", "first/Q8_0/tiny-Q8_0.gguf", "--type", "Q4_0", "-o", "third", "--no-eval")
    assert twice.code == 0
    assert "caution: first/Q8_0/tiny-Q8_0.gguf is quantized already (Q8_0)" in twice.err


def test_a_model_beside_from_is_refused(run: Run, model: Path) -> None:
    refused = run("gguf", str(model), "--from", "other.gguf")
    assert refused.code == 2
    assert f"--from other.gguf: there is a MODEL too, {model}." in refused.err


def test_a_split_gguf_is_quantized_again(run: Run, model: Path) -> None:
    options = ["--type", "BF16", "--split-max-size", "900kB", "-o", "parts", "--no-eval"]
    assert run("gguf", str(model), *options).code == 0
    (first, *_) = sorted(Path("parts").glob("*.gguf"))
    assert first.name.startswith("tiny-BF16-00001-of-0000")
    assert run("gguf", str(first), "--type", "Q8_0", "-o", "one", "--no-eval").code == 0
    run("gguf", str(model), "--type", "Q8_0", "-o", "direct", "--no-eval")
    (one,), (direct,) = Path("one").glob("*.gguf"), Path("direct").glob("*.gguf")
    assert one.read_bytes() == direct.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="limits files as Linux does")
def test_a_disk_that_fills_up_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    done = subprocess.run(
        [sys.executable, "-m", "gemquant", "gguf", str(model), "--no-eval", "-o", "out", "-q"],
        cwd=tmp_path,
        preexec_fn=limited,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gemquant", "gguf", str(model), "-o", "deep/out"]
    process = subprocess.Popen(
        [*command, "--type", "Q4_K_M,Q8_0", "--importance", "--samples", "200", "--threads", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("deep/out/.*.partial"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[-1] == "interrupted; nothing was left behind"
    assert list(tmp_path.iterdir()) == []
