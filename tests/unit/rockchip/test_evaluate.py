"""Logits on their way from a stand-in for the runtime: no hardware was here."""

from __future__ import annotations

import base64
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from gemquant.core.protocols import Silence
from gemquant.errors import ArtifactError, WorkerError
from gemquant.rockchip.board_connection import BoardAddress
from gemquant.rockchip.board_events import Event, Rows
from gemquant.rockchip.board_rkllm import Board, RkllmOnBoard, on_board
from gemquant.rockchip.board_survey import survey
from gemquant.rockchip.evaluate import RkllmRunner
from tests.helpers.stand_in_board import make_board
from tests.helpers.stand_in_rkllmrt import greedy, random_table, stand_in_runtime, write_table


def test_long_windows_arrive_in_pieces_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = make_board(tmp_path / "board")
    monkeypatch.setenv("PATH", f"{stand_in.programs}{os.pathsep}{os.environ['PATH']}")
    shutil.copy(stand_in_runtime("1.2.3"), stand_in.root / "usr/lib/librkllmrt.so")
    table = write_table(tmp_path / "wide.rkllm", random_table(2048))
    address = BoardAddress.parse("ssh://rock-5b.local")
    board = Board.surveyed(address, survey(address))
    ids = torch.randint(2, 2048, (2, 600), generator=torch.Generator().manual_seed(0))
    with on_board(board, tmp_path / "wide.rkllm", Silence()) as model:
        runner = RkllmRunner.start(model, vocabulary=2048, prompt=[2, 7], new_tokens=3)
        assert list(runner.beginning) == greedy(table, 7, 3)
        chunks = [chunk.clone() for chunk in runner.logit_chunks(ids)]
    assert [len(chunk) for chunk in chunks] == [128] * 9 + [46]  # 2 · 599 positions
    assert np.array_equal(torch.cat(chunks), table[ids[:, :-1].reshape(-1)])


def rows(window: int, first: int, content: np.ndarray, **changed: Any) -> Rows:
    data = content.astype("<f4").tobytes()
    fields = {
        "event": "logits",
        "window": window,
        "first": first,
        "rows": len(content),
        "columns": content.shape[1],
        "crc32": zlib.crc32(data),
        "data": base64.b64encode(data).decode(),
    }
    return Rows.model_validate({**fields, **changed})


def chunks(*events: Event) -> list[torch.Tensor]:
    """What becomes of events about two windows of three tokens over four entries."""

    def logits(_: object) -> Iterator[Event]:
        yield from events

    there = cast("RkllmOnBoard", SimpleNamespace(logits=logits))
    runner = RkllmRunner(there, "librkllmrt 1.3.0", "1.3.0", 4, ())
    return [chunk.clone() for chunk in runner.logit_chunks(torch.zeros(2, 3, dtype=torch.int64))]


NUMBERS = np.arange(24, dtype="<f4").reshape(6, 4)


def test_the_last_token_of_a_window_predicts_nothing() -> None:
    (chunk,) = chunks(rows(0, 0, NUMBERS[:2]), rows(0, 2, NUMBERS[2:3]), rows(1, 0, NUMBERS[3:]))
    assert chunk[:, 0].tolist() == [0.0, 4.0, 12.0, 16.0]


def test_rows_that_are_missing_are_an_error() -> None:
    with pytest.raises(WorkerError, match="The board sent logits of 3 of 6 tokens"):
        chunks(rows(0, 0, NUMBERS[:3]))


def test_rows_in_another_order_are_an_error() -> None:
    with pytest.raises(WorkerError, match="in another order"):
        chunks(rows(1, 0, NUMBERS[:3]), rows(0, 0, NUMBERS[3:]))


def test_rows_that_were_damaged_on_the_way_are_an_error() -> None:
    with pytest.raises(WorkerError, match="Logits from the board arrived damaged"):
        chunks(rows(0, 0, NUMBERS[:3], crc32=7))


def test_another_vocabulary_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="logits over 3 tokens, and the model has 4"):
        chunks(rows(0, 0, NUMBERS[:3, :3]))
