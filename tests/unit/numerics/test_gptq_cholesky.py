from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gemquant.errors import UnsupportedError
from gemquant.numerics.gptq import damped_cholesky

F64 = torch.float64


def inputs(tokens: int, channels: int) -> Tensor:
    """Correlated activations with a few loud channels."""
    generator = torch.Generator().manual_seed(tokens)
    mixing = torch.randn(channels, channels, generator=generator) / channels**0.5
    x = torch.randn(tokens, channels, generator=generator) @ (torch.eye(channels) + mixing)
    x[:, ::7] *= 6
    return x


def damped(gram: Tensor, damping: float) -> Tensor:
    return gram.double() + damping * gram.double().diagonal().mean() * torch.eye(
        len(gram), dtype=F64
    )


def assert_factors(upper: Tensor, expected: Tensor) -> None:
    found = upper.double() @ upper.double().T
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_the_factor_times_its_transpose_is_the_damped_gram_matrix(damping: float) -> None:
    x = inputs(200, 40)
    gram = x.T @ x
    before = gram.clone()
    upper = damped_cholesky(gram, damping=damping).upper
    assert_factors(upper, damped(gram, damping))
    assert torch.equal(upper, upper.triu())
    assert torch.equal(gram, before), "the caller's matrix was changed"


@pytest.mark.parametrize("channels", [1, 127, 128, 129, 300])
def test_matrices_of_several_block_columns_factor_as_a_whole(channels: int) -> None:
    x = inputs(2 * channels, channels)
    gram = x.T @ x
    upper = damped_cholesky(gram).upper
    assert_factors(upper, damped(gram, 0.01))
    assert torch.equal(upper, upper.triu())


def test_the_factor_does_not_depend_on_threads() -> None:
    x = inputs(900, 300)
    gram, before = x.T @ x, torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = damped_cholesky(gram).upper
        torch.set_num_threads(2)
        two = damped_cholesky(gram).upper
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_the_factor_is_the_same_turned_in_small_parts(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs(20, channels)
    whole = damped_cholesky(x.T @ x).upper
    monkeypatch.setattr("gemquant.numerics.gptq.VALUES_AT_ONCE", 3)
    assert torch.equal(damped_cholesky(x.T @ x).upper, whole)


def test_fewer_tokens_than_channels_factor_too() -> None:
    x = inputs(10, 40)
    gram = x.T @ x
    assert_factors(damped_cholesky(gram).upper, damped(gram, 0.01))


def test_an_indefinite_matrix_is_damped_until_it_is_not() -> None:
    gram = torch.eye(4)
    gram[0, 1] = gram[1, 0] = 1.5  # eigenvalues −0.5 and 2.5
    assert_factors(damped_cholesky(gram).upper, damped(gram, 1.0))


@pytest.mark.parametrize("fill", [0.0, 1e-30])
def test_silent_inputs_factor_to_something_finite(fill: float) -> None:
    upper = damped_cholesky(torch.full((3, 3), fill)).upper
    assert torch.isfinite(upper).all()
    assert (upper.diagonal() > 0).all()


def test_a_matrix_that_is_no_number_is_refused_with_its_size() -> None:
    with pytest.raises(UnsupportedError, match="5 channels is not positive definite"):
        damped_cholesky(torch.full((5, 5), float("nan")))


def test_residual_variance_is_what_a_regression_on_later_inputs_leaves() -> None:
    x = inputs(300, 12)
    gram = x.T @ x
    moments = damped(gram, 0.01)
    expected = []
    for j in range(12):
        later = slice(j + 1, 12)
        explained = 0.0
        if j < 11:
            coefficients = torch.linalg.solve(moments[later, later], moments[later, j])
            explained = float(moments[j, later] @ coefficients)
        expected.append(float(moments[j, j]) - explained)
    found = damped_cholesky(gram).residual_variance.double()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-4, atol=0)


def test_scaling_the_inputs_scales_the_factor() -> None:
    x = inputs(100, 16)
    gram, scale = x.T @ x, torch.linspace(0.2, 5, 16)
    expected = damped(gram, 0.01) / torch.outer(scale, scale).double()
    upper = damped_cholesky(gram).scaled(scale).upper
    assert_factors(upper, expected)
    assert torch.equal(upper, upper.triu())
