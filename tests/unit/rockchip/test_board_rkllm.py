"""The program for boards against a stand-in for the runtime, through a stand-in for ssh.

The stand-in checks every field that it is given against the documented interface. It is compiled
for this machine: nothing here was executed on hardware.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemquant.core.protocols import Silence
from gemquant.errors import GemquantError, UnsupportedError, WorkerError
from gemquant.rockchip.board_connection import BoardAddress
from gemquant.rockchip.board_events import Event, Loaded, Ran, Rows
from gemquant.rockchip.board_rkllm import Board, RkllmOnBoard, on_board, rows_of
from gemquant.rockchip.board_survey import survey
from gemquant.rockchip.programs.rkllm_structures import LAYOUTS, layout_of
from tests.helpers.stand_in_board import StandInBoard
from tests.helpers.stand_in_rkllmrt import greedy, random_table, stand_in_runtime, write_table

BOARD = BoardAddress.parse("ssh://rock@rock-5b.local")
PROMPT = [2, 7, 11]
SLOW = pytest.mark.slow
VERSIONS = ["1.1.2", "1.2.0", pytest.param("1.2.1", marks=SLOW), "1.2.3", "1.3.0"]

Measure = Callable[[RkllmOnBoard], list[Event]]


def measured(
    stand_in: StandInBoard,
    version: str,
    measure: Measure,
    *,
    structures: str | None = None,
    release: str | None = None,
    board: BoardAddress = BOARD,
    eos: int = 1,
    microseconds: int = 0,
) -> list[Event]:
    """What is told of a table of 48 tokens on a board with that release."""
    shutil.copy(stand_in_runtime(version, structures), stand_in.root / "usr/lib/librkllmrt.so")
    file = stand_in.root.parent / "tiny.rkllm"
    write_table(file, random_table(48), eos=eos, microseconds=microseconds)
    with on_board(Board.surveyed(board, survey(board), release=release), file, Silence()) as model:
        return measure(model)


def thrice(there: RkllmOnBoard) -> list[Event]:
    return list(there.generate(PROMPT, new_tokens=6, repetitions=2, warm_up_runs=1))


def windows(there: RkllmOnBoard) -> list[Event]:
    return list(there.logits([[2, 5, 6, 7], [2, 9, 8, 7]]))


@pytest.mark.parametrize("version", LAYOUTS)
def test_structures_lie_as_the_compiler_lays_them(version: str) -> None:
    library = ctypes.CDLL(str(stand_in_runtime(version)))
    layout = layout_of(version)
    sizes = (ctypes.c_size_t * 4).in_dll(library, "stand_in_sizes")
    assert tuple(sizes) == layout.sizes
    library.stand_in_offset.restype = ctypes.c_char_p
    offset, found = ctypes.c_size_t(), {}
    while name := library.stand_in_offset(len(found), ctypes.byref(offset)):
        kind, _, field = name.decode().removeprefix("RKLLM").partition(".")
        found[f"{kind.removesuffix('Param').lower() or 'param'}.{field}"] = offset.value
    assert found == layout.offsets


@pytest.mark.parametrize("version", VERSIONS)
def test_every_release_generates_what_its_table_says(version: str, stand_in: StandInBoard) -> None:
    _started, loaded, *runs, _done = measured(stand_in, version, thrice)
    assert isinstance(loaded, Loaded)
    assert loaded.version == version
    expected = greedy(random_table(48), 11, 6)
    for run in runs:
        assert isinstance(run, Ran)
        assert list(run.tokens) == expected
        assert 0 < run.first_token_seconds <= run.total_seconds
        assert (run.statistics is not None) == (version >= "1.2.1")
    assert [run.warm_up for run in runs if isinstance(run, Ran)] == [True, False, False]
    assert stand_in.home() == []


@SLOW
def test_the_cache_is_cleared_between_runs(stand_in: StandInBoard) -> None:
    runs = [event for event in measured(stand_in, "1.2.3", thrice) if isinstance(event, Ran)]
    counted = [run.statistics.prefill_tokens for run in runs if run.statistics]
    assert counted == [3, 3, 3]


@pytest.mark.parametrize("version", ["1.2.0", pytest.param("1.2.3", marks=SLOW), "1.3.0"])
def test_logits_arrive_bit_by_bit(version: str, stand_in: StandInBoard) -> None:
    told = [event for event in measured(stand_in, version, windows) if isinstance(event, Rows)]
    arrived = {(e.window, e.first): rows_of(e) for e in told}
    table = random_table(48)
    assert np.array_equal(arrived[0, 0], table[[2, 5, 6, 7]])
    assert np.array_equal(arrived[1, 0], table[[2, 9, 8, 7]])
    assert sum(event.rows for event in told) == 8


def test_the_same_happens_through_adb(stand_in: StandInBoard) -> None:
    board = BoardAddress.parse("adb:0123ABCD")
    told = measured(stand_in, "1.3.0", thrice, board=board)
    assert len([event for event in told if isinstance(event, Ran)]) == 3
    assert stand_in.home() == []


def test_a_release_without_logits_says_what_to_do(stand_in: StandInBoard) -> None:
    with pytest.raises(
        WorkerError, match=r"librkllmrt 1\.1\.2 has no logits, which came with 1\.2\.0"
    ):
        measured(stand_in, "1.1.2", windows)
    assert stand_in.home() == []


@pytest.mark.parametrize(
    ("version", "structures", "wrong"),
    [
        ("1.4.0", "1.3.0", "librkllmrt 1.4.0 is not known; known are 1.1.0, "),
        pytest.param("1.2.1b1", "1.2.0", "librkllmrt 1.2.1b1 is not known", marks=SLOW),
        pytest.param("1.0.1", "1.1.2", "librkllmrt 1.0.1 takes text alone", marks=SLOW),
        ("1.2.3", "1.2.0", "not release 1.2.3 as published: it lacks rkllm_set_function_tools"),
        pytest.param(
            "1.1.4",
            "1.2.0",
            "not release 1.1.4 as published: it has rkllm_clear_kv_cache",
            marks=SLOW,
        ),
    ],
)
def test_a_library_that_is_not_known_is_not_called(
    version: str, structures: str, wrong: str, stand_in: StandInBoard
) -> None:
    with pytest.raises(WorkerError, match=wrong):
        measured(stand_in, version, thrice, structures=structures)


@SLOW
def test_a_library_that_contradicts_the_user_is_not_called(stand_in: StandInBoard) -> None:
    with pytest.raises(WorkerError, match=r"is release 1\.2\.3, not 1\.3\.0"):
        measured(stand_in, "1.2.3", thrice, release="1.3.0")


@SLOW
def test_a_library_that_says_nothing_is_believed_to_be_what_the_user_says(
    stand_in: StandInBoard,
) -> None:
    with pytest.raises(WorkerError, match="state it with --board-release"):
        measured(stand_in, "silent", thrice, structures="1.2.3")
    told = measured(stand_in, "silent", thrice, structures="1.2.3", release="1.2.2")
    assert isinstance(told[1], Loaded)
    assert told[1].version == "1.2.2"


@SLOW
def test_before_1_3_a_run_ends_with_eos(stand_in: StandInBoard) -> None:
    third = greedy(random_table(48), 11, 3)[2]
    runs = [e for e in measured(stand_in, "1.2.3", thrice, eos=third) if isinstance(e, Ran)]
    assert [len(run.tokens) for run in runs] == [2, 2, 2]
    runs = [e for e in measured(stand_in, "1.3.0", thrice, eos=third) if isinstance(e, Ran)]
    assert [len(run.tokens) for run in runs] == [6, 6, 6]


def test_what_the_runtime_printed_comes_with_the_error(stand_in: StandInBoard) -> None:
    def too_long(there: RkllmOnBoard) -> list[Event]:
        (Path(there.model)).write_bytes(b"no model")
        return thrice(there)

    with pytest.raises(WorkerError, match="arrived damaged"):
        measured(stand_in, "1.2.3", too_long)

    def beyond(there: RkllmOnBoard) -> list[Event]:
        return list(there.generate([2, 99], new_tokens=2))

    with pytest.raises(WorkerError, match=r"rkllm_run returned -1(?s:.*)not so: ids\[n\] >= 0"):
        measured(stand_in, "1.2.3", beyond)


@pytest.mark.parametrize(
    ("fault", "measure", "told"),
    [
        (-1, windows, r"gave logits of 1 of 4 tokens: perplexity cannot be computed"),
        pytest.param(-2, thrice, r"the runtime generated nothing", marks=SLOW),
        (-3, thrice, r"used an instruction that this processor lacks"),
    ],
    ids=["last token alone", "nothing", "illegal instruction"],
)
def test_a_runtime_that_does_less_than_is_documented_gives_no_figure(
    fault: int, measure: Measure, told: str, stand_in: StandInBoard
) -> None:
    with pytest.raises(WorkerError, match=told):
        measured(stand_in, "1.3.0", measure, microseconds=fault)
    assert stand_in.home() == []


def test_a_board_with_too_little_room_is_refused(stand_in: StandInBoard) -> None:
    told = survey(BOARD)
    full = type(told)(**{**vars(told), "spaces": (("/tmp", 1 << 20),)})
    file = stand_in.root.parent / "tiny.rkllm"
    write_table(file, random_table(48))
    with (
        pytest.raises(GemquantError, match="no writable folder has more than"),
        on_board(Board(BOARD, full, "/usr/lib/librkllmrt.so"), file, Silence()),
    ):
        pass


def test_every_problem_of_a_board_is_told_at_once(stand_in: StandInBoard) -> None:
    (stand_in.root / "bin/uname").write_text("#!/bin/sh\necho armv7l\n")
    with pytest.raises(GemquantError) as error:
        Board.surveyed(BOARD, survey(BOARD), release="1.9.9")
    text = str(error.value)
    assert "--board-release 1.9.9: known are" in text
    assert "the runtime needs Linux aarch64" in text
    assert "has no librkllmrt.so" in text


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
from pathlib import Path
from gemquant.rockchip.board_connection import BoardAddress
from gemquant.rockchip.board_survey import survey
from gemquant.rockchip.board_events import Loaded
from gemquant.rockchip.board_rkllm import Board, on_board
from gemquant.core.protocols import Silence
board = BoardAddress.parse("ssh://rock@rock-5b.local")
with on_board(Board.surveyed(board, survey(board)), Path(sys.argv[1]), Silence()) as model:
    for event in model.generate([2, 7], new_tokens=1000):
        if isinstance(event, Loaded):
            print("loaded", flush=True)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=SLOW)], ids=["INT", "KILL"]
)
def test_an_interrupt_leaves_neither_process_nor_folder(
    number: signal.Signals, stand_in: StandInBoard
) -> None:
    shutil.copy(stand_in_runtime("1.3.0"), stand_in.root / "usr/lib/librkllmrt.so")
    file = stand_in.root.parent / "slow.rkllm"
    write_table(file, random_table(48), microseconds=100_000)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loaded\n"
        (folder,) = (stand_in.root / "home").iterdir()
        there = int((folder / "pid").read_text())
        process.send_signal(number)
        process.wait(timeout=20)
    assert process.returncode != 0
    for _ in range(100):
        if stand_in.home() == [] and not Path(f"/proc/{there}").exists():
            break
        time.sleep(0.1)
    assert stand_in.home() == []
    assert not Path(f"/proc/{there}").exists()


def test_a_file_for_another_chip_is_refused(stand_in: StandInBoard) -> None:
    board = Board(BOARD, survey(BOARD), "/usr/lib/librkllmrt.so")
    with pytest.raises(UnsupportedError, match="x is for rk3576; the board has an rk3588"):
        board.require_platform("rk3576", "x")
