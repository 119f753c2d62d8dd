from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.core.protocols import Silence
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.quality.divergence import Head, Logits
from gemquant.measure.quality.native import NativeRuntime
from gemquant.measure.quality.streams import EvaluationStreams, final_norm, head_table
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_prefix
from tests.helpers.tiny_gemma import Kind


def windows(name: str, count: int, seed: int) -> TokenWindows:
    ids = torch.randint(3, 300, (count, 20), generator=torch.Generator().manual_seed(seed))
    return TokenWindows(ids, name, stream_digest([ids]))


@pytest.fixture
def finished(tiny_folders: dict[Kind, Path]) -> EvaluationStreams:
    """Three windows of two slices, at the end of a Gemma 3."""
    checkpoint = open_checkpoint(str(tiny_folders["gemma3_text"]))
    skeleton = Skeleton(checkpoint.config)
    streams = EvaluationStreams(skeleton, [windows("a", 2, 0), windows("b", 1, 1)])
    return run(streams, checkpoint, skeleton)


def run(
    streams: EvaluationStreams, checkpoint: Checkpoint, skeleton: Skeleton
) -> EvaluationStreams:
    streams.embed(checkpoint, [(checkpoint, None)])
    for index in range(skeleton.layers):
        weights = {
            name: checkpoint.tensor(layer_prefix(index) + name, torch.float32)
            for name in layer_parameters(checkpoint.config, index)
        }
        streams.original.advance(index, weights)
        streams.candidates[0].advance(index, weights)
    return streams


def test_no_bound_leaves_the_streams_as_they_are(finished: EvaluationStreams) -> None:
    assert finished.beginnings(tokens=None, window=None) is finished
    assert finished.beginnings(tokens=60, window=20) is finished


def test_a_bound_on_tokens_is_shared_by_the_first_windows_of_all_slices(
    finished: EvaluationStreams,
) -> None:
    shorter = finished.beginnings(tokens=25, window=None)
    assert torch.equal(shorter.ids, finished.ids[[0, 2], :12])
    assert [each.digest for each in shorter.slices] == [
        stream_digest([window[None]]) for window in shorter.ids
    ]


def test_a_bound_on_windows_cuts_them(finished: EvaluationStreams) -> None:
    assert finished.beginnings(tokens=None, window=8).ids.shape == (2, 8)


def test_beginnings_are_what_running_them_alone_would_give(
    finished: EvaluationStreams, tiny_folders: dict[Kind, Path]
) -> None:
    shorter = finished.beginnings(tokens=20, window=None)
    checkpoint = open_checkpoint(str(tiny_folders["gemma3_text"]))
    skeleton = Skeleton(checkpoint.config)
    slices = [
        TokenWindows(ids[None], name, "") for ids, name in zip(shorter.ids, "ab", strict=True)
    ]
    alone = run(EvaluationStreams(skeleton, slices), checkpoint, skeleton)
    expected = alone.original.hidden
    torch.testing.assert_close(shorter.original.hidden, expected, rtol=1e-4, atol=1e-3)


@pytest.fixture
def heads(finished: EvaluationStreams, tiny_folders: dict[Kind, Path]) -> tuple[Head, Head]:
    """The original at its head, and the same a little off."""
    checkpoint = open_checkpoint(str(tiny_folders["gemma3_text"]))
    skeleton = Skeleton(checkpoint.config)
    model = (final_norm(checkpoint, skeleton), head_table(checkpoint, skeleton))
    original, same = finished.predictors([model, model])
    noise = torch.randn(same.hidden.shape, generator=torch.Generator().manual_seed(3))
    return original, Head(same.hidden + 0.05 * same.hidden.std() * noise, same.table)


@pytest.mark.parametrize("at_once", [57, 19, 8, 1])
def test_a_runtimes_chunks_score_as_one_model_would(
    finished: EvaluationStreams, heads: tuple[Head, Head], at_once: int
) -> None:
    original, other = heads
    (expected,) = finished.compare(original, [other], Silence())
    logits = other.hidden @ other.table(0, finished.vocabulary).T
    chunks = map(Logits, logits.split(at_once))
    found, from_ours = finished.compare_runtime(original, original, chunks, Silence(), "running")
    assert [scores.divergence.shape for scores in found] == [(38,), (19,)]
    for mine, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs.divergence, mine.divergence, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(theirs.nll_quantized, mine.nll_quantized)
        assert torch.equal(theirs.agreement, mine.agreement)
        assert torch.equal(theirs.shared, mine.shared)
    # One window of every slice: the first of a's two, and b's only one.
    first = finished.beginnings(tokens=40, window=None)
    assert first.ids.shape == (2, 20)
    chosen = torch.cat([torch.arange(19), torch.arange(38, 57)])
    pair = [Head(head.hidden[chosen], head.table) for head in heads]
    (of_first,) = first.compare(pair[0], [pair[1]], Silence())
    expected_from_ours = torch.cat([scores.divergence for scores in of_first])
    torch.testing.assert_close(from_ours, expected_from_ours, rtol=1e-3, atol=1e-5)


def test_a_runtime_that_stops_short_is_a_defect(
    finished: EvaluationStreams, heads: tuple[Head, Head]
) -> None:
    original, other = heads
    short = Head(other.hidden[:-1], other.table)
    with pytest.raises(ValueError, match="predicts 56 tokens, not 57"):
        finished.compare_runtime(original, original, [short], Silence(), "running")


def test_a_runtime_keeps_its_float32_where_we_compute_in_bfloat16(
    tiny_folders: dict[Kind, Path],
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma3_text"]))
    skeleton = Skeleton(checkpoint.config, dtype=torch.bfloat16)
    streams = EvaluationStreams(skeleton, [windows("a", 2, 0)])
    hidden = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    head = streams.runtime_head(hidden.bfloat16(), lambda start, stop: table[start:stop])
    expected = hidden[:, :-1].reshape(38, 3).bfloat16().float() @ table.T
    assert torch.equal(head.run(0, 5)(slice(0, 38)), expected)


def test_sampled_positions_score_as_among_all(
    finished: EvaluationStreams, tiny_folders: dict[Kind, Path]
) -> None:
    checkpoint = open_checkpoint(str(tiny_folders["gemma3_text"]))
    slices = [each.sampled(5) for each in finished.slices]
    sampled = EvaluationStreams(Skeleton(checkpoint.config), slices)
    table = head_table(checkpoint, Skeleton(checkpoint.config))
    generator = torch.Generator().manual_seed(0)
    width = checkpoint.config["hidden_size"]
    states = [torch.randn(3, 20, width, generator=generator) for _ in range(2)]
    full = [finished.runtime_head(each, table) for each in states]
    few = [sampled.runtime_head(each, table) for each in states]
    (everything,) = finished.compare(full[0], full[1:], Silence())
    (scores,) = sampled.compare(few[0], few[1:], Silence())
    assert [part.divergence.shape for part in scores] == [(10,), (5,)]
    chunks = (full[1].hidden @ table(0, sampled.vocabulary).T).split(8)
    runtime = NativeRuntime("a runtime", _Chunks(chunks))
    from_chunks, _ = sampled.compare_runtime(
        few[0], None, runtime.predictions(sampled), Silence(), "running"
    )
    for windows, whole, part, native in zip(slices, everything, scores, from_chunks, strict=True):
        for name in ("nll_original", "nll_quantized", "divergence", "agreement", "shared"):
            values = getattr(whole, name).view(len(windows.ids), -1)
            expected = values.gather(1, windows.positions).flatten()
            torch.testing.assert_close(getattr(part, name), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(getattr(native, name), expected, rtol=1e-3, atol=1e-5)


class _Chunks:
    """A runtime whose logits are there already."""

    software, max_tokens, max_window = "a runtime", None, None

    def __init__(self, chunks: Sequence[Tensor]) -> None:
        self._chunks = chunks

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        yield from self._chunks

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        raise NotImplementedError
