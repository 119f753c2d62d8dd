from __future__ import annotations

import pytest
import torch

from gemquant.measure.tasks.scoring import Score, Target
from gemquant.runtimes.runtime import Chunk


class TestScore:
    def test_it_sums_what_several_chunks_say(self) -> None:
        logits = torch.randn((6, 50), generator=torch.Generator().manual_seed(0))
        target = Target(first=2, ids=(7, 3, int(logits[4].argmax())))
        score = Score()
        for start in (0, 3):
            score.add(Chunk(0, start, logits[start : start + 3]), target)
        told = logits.double().log_softmax(-1)
        expected = told[2, 7] + told[3, 3] + told[4, target.ids[2]]
        assert score.log_likelihood == pytest.approx(float(expected), rel=1e-6)
        assert not score.greedy

    def test_it_is_greedy_where_every_token_is_first(self) -> None:
        logits = torch.randn((2, 50), generator=torch.Generator().manual_seed(1))
        score = Score()
        score.add(Chunk(0, 0, logits), Target(0, tuple(logits.argmax(-1).tolist())))
        assert score.greedy
