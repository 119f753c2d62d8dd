from __future__ import annotations

import torch
from torch import Tensor

from gemquant.calibration.statistics import RelativeGatherer, StatisticsGatherer
from gemquant.core.protocols import Statistics


def gathered(batches: list[Tensor], *, gram: bool = True) -> Statistics:
    gatherer = StatisticsGatherer(batches[0].shape[-1], gram=gram, device=torch.device("cpu"))
    for batch in batches:
        gatherer(batch)
    return gatherer.result()


def test_sums_of_two_windows_can_be_checked_by_hand() -> None:
    found = gathered([torch.tensor([[[1.0, -2.0], [3.0, 0.0]]]), torch.tensor([[[-4.0, 1.0]]])])
    assert found.tokens == 3
    assert found.sum_squares.tolist() == [26.0, 5.0]
    assert found.sum_squares.dtype == torch.float64
    torch.testing.assert_close(found.mean_abs, torch.tensor([8 / 3, 1.0]))
    assert found.max_abs.tolist() == [4.0, 2.0]
    assert found.gram is not None
    assert found.gram.tolist() == [[26.0, -6.0], [-6.0, 5.0]]


def test_statistics_of_many_batches_are_those_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [100 * torch.randn(3, 50, 24, generator=generator) for _ in range(7)]
    x = torch.cat(batches).reshape(-1, 24).double()
    found = gathered(batches)
    assert found.tokens == 1050
    assert found.gram is not None
    torch.testing.assert_close(found.sum_squares, x.square().sum(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.mean_abs.double(), x.abs().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.max_abs.double(), x.abs().amax(0), rtol=0, atol=0)
    scale = (x.T @ x).diagonal().max().item()
    torch.testing.assert_close(found.gram.double(), x.T @ x, rtol=0, atol=1e-6 * scale)


def test_bfloat16_activations_are_summed_in_wider_types() -> None:
    ones = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    found = gathered([ones, ones])
    assert found.sum_squares.tolist() == [2000.0, 2000.0]
    assert found.gram is not None
    assert found.gram.tolist() == [[2000.0, 2000.0]] * 2


def test_inputs_of_normed_outputs_count_relative_to_the_size_of_each_head() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 30, 12, generator=generator) * 10.0 ** torch.arange(-2, 4).repeat(5)[:, None]
    weight = torch.randn(8, 12, generator=generator)
    gatherer = RelativeGatherer(weight, head_dim=4, eps=1e-6)
    for window in x:
        gatherer(window)
    found = gatherer.result().gram
    wide = x.flatten(0, 1).double()
    squares = (wide @ weight.T.double()).unflatten(1, (2, 4)).square().mean(-1) + 1e-6
    expected = (wide.T * squares.reciprocal().mean(1)) @ wide
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_the_gram_matrix_is_gathered_only_when_asked_for() -> None:
    assert gathered([torch.ones(1, 4, 3)], gram=False).gram is None


def test_bfloat16_inputs_give_the_gram_matrix_of_float64() -> None:
    """By the processor's own products where it has them: an odd token, an odd channel."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(1, 101, 650, generator=generator).bfloat16() for _ in range(2)]
    x = torch.cat(batches, dim=1)[0].double()
    found = gathered(batches).gram
    assert found is not None
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.double(), x.T @ x, rtol=0, atol=2e-6 * float((x.T @ x).max()))


def test_the_sample_is_every_nth_input_across_batches() -> None:
    gatherer = StatisticsGatherer(1, gram=False, device=torch.device("cpu"), every=3)
    for batch in (torch.arange(4.0), torch.arange(4.0, 5.0), torch.arange(5.0, 11.0)):
        gatherer(batch[None, :, None])
    sample = gatherer.result().sample
    assert sample is not None
    assert sample.flatten().tolist() == [0.0, 3.0, 6.0, 9.0]


def test_without_being_asked_no_sample_is_kept() -> None:
    assert gathered([torch.ones(1, 3, 2)]).sample is None
