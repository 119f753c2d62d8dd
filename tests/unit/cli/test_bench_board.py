"""`gemquant bench --board` against stand-ins for ssh and the runtime: no hardware was here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.stand_in_board import ADDRESS, StandInBoard
from tests.helpers.stand_in_rkllmrt import greedy, random_table, write_table
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.unit.cli.conftest import Run


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A tiny Gemma, and a table of its vocabulary as an RKLLM file."""
    model = write_tiny_gemma(tmp_path / "model", "gemma2")
    vocabulary = json.loads((tmp_path / "model/config.json").read_text())["vocab_size"]
    write_table(tmp_path / "tiny.rkllm", random_table(vocabulary))
    return [str(tmp_path / "tiny.rkllm"), "--tokenizer", str(model or tmp_path / "model")]


def test_a_file_is_measured_with_median_and_spread(
    run: Run, board: StandInBoard, files: list[str]
) -> None:
    lengths = ("--prompt-tokens", "8", "--new-tokens", "6", "--warm-up-runs", "1")
    done = run("bench", *files, "--board", ADDRESS, *lengths, "--json", "-q")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    (row,) = told["rows"]
    assert (row["runtime"], row["mode"], row["not_run"]) == ("rkllm", "npu", None)
    figures = row["figures"]
    assert len(figures["measured"]["decode_tokens_per_second"]["values"]) == 5
    assert len(figures["warm_up"]["first_token_seconds"]["values"]) == 1
    assert figures["runtime_statistics"]["prompt_tokens"] == 8
    # 2 ms a prompt token, 50 ms a new one: what the stand-in says of itself.
    assert figures["runtime_statistics"]["prefill_tokens_per_second"]["median"] == 500.0
    assert figures["runtime_statistics"]["decode_tokens_per_second"]["median"] == 20.0
    assert figures["runtime_statistics"]["peak_resident_bytes"] == 2779 << 20
    assert len(figures["greedy_tokens"]) == 6
    assert figures["repeatable"]
    machine = told["environment"]["machine"]
    assert (machine["system"], machine["processor"]) == ("Linux aarch64", "Radxa ROCK 5B")
    assert told["board"]["fixed_clocks"]
    assert told["board"]["celsius"] == {"soc-thermal": {"lowest": 46.23, "highest": 46.23}}
    assert told["board"]["clocks_mhz"]["fdab0000.npu"] == {"lowest": 1000.0, "highest": 1000.0}
    assert not told["board"]["throttled"]
    assert board.home() == []


def test_the_benchmark_is_saved_complete_or_not_at_all(
    run: Run, board: StandInBoard, files: list[str], tmp_path: Path
) -> None:
    short = ("--prompt-tokens", "4", "--new-tokens", "3", "--repetitions", "1")
    output = tmp_path / "bench.json"
    command = ("bench", *files, "--board", ADDRESS, *short, "-q", "-o", str(output))
    done = run(*command, "--json")
    assert done.code == 0, done.err
    assert json.loads(output.read_text(encoding="utf-8")) == json.loads(done.out)
    assert run(*command).code == 0
    output.write_text("notes", encoding="utf-8")
    refused = run(*command)
    assert refused.code == 7
    assert "is not an earlier benchmark: only those are replaced" in refused.err
    assert output.read_text(encoding="utf-8") == "notes"


def test_a_hot_board_is_told(run: Run, board: StandInBoard, files: list[str]) -> None:
    board.write("sys/class/thermal/cooling_device0/cur_state", "2\n")
    board.clock("sys/class/devfreq/dmc", "dmc_ondemand", 528000000, 2112000000)
    short = ("--prompt-tokens", "4", "--new-tokens", "3", "--repetitions", "1")
    done = run("bench", *files, "--board", ADDRESS, *short, "-q")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "the board slowed down because of heat" in text
    assert "clocks were not fixed at their highest" in text
    assert "dmc 528 to 528 MHz" in text


def test_a_file_that_the_runtime_refuses_leaves_its_reason(
    run: Run, board: StandInBoard, files: list[str]
) -> None:
    Path(files[0]).write_bytes(b"nothing of the kind")
    done = run("bench", *files, "--board", ADDRESS, "--prompt-tokens", "4", "--json", "-q")
    (row,) = json.loads(done.out)["rows"]
    assert row["figures"] is None
    assert "rkllm_init returned -1" in row["not_run"]
    assert "not so: fread(head" in row["not_run"]


def test_what_a_board_decides_itself_is_refused_at_once(run: Run, files: list[str]) -> None:
    wrong = ("--device", "cuda", "--compute-dtype", "float16", "--threads", "4")
    done = run("bench", *files, "--board", ADDRESS, *wrong)
    assert done.code == 2
    for flag in ("--device cuda", "--compute-dtype float16", "--threads 4"):
        assert f"{flag}: with --board, the board's runtime decides that." in done.err


def test_an_rkllm_file_without_a_board_says_how(run: Run, files: list[str]) -> None:
    done = run("bench", files[0])
    assert done.code == 2
    assert f"gemquant bench {files[0]} --board ssh://USER@HOST" in done.err


def test_what_is_no_rkllm_file_is_refused(run: Run, tmp_path: Path) -> None:
    write_tiny_gemma(tmp_path / "plain", "gemma2")
    done = run("bench", str(tmp_path / "plain"), "--board", ADDRESS)
    assert done.code == 4
    assert "--board runs RKLLM files, and this is safetensors" in done.err


def test_the_greedy_tokens_are_those_of_the_table(
    run: Run, board: StandInBoard, files: list[str], tmp_path: Path
) -> None:
    from gemquant.formats.checkpoint import open_checkpoint
    from gemquant.measure.bench.measure import prompt_from

    short = ("--prompt-tokens", "4", "--new-tokens", "5", "--repetitions", "1")
    done = run("bench", *files, "--board", ADDRESS, *short, "--json", "-q")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    last = prompt_from(checkpoint.tokenizer(), checkpoint.config["bos_token_id"], 4)[-1]
    table = random_table(checkpoint.config["vocab_size"])
    (row,) = json.loads(done.out)["rows"]
    assert row["figures"]["greedy_tokens"] == greedy(table, last, 5)
