from __future__ import annotations

import pytest
import torch

from gemquant.calibration.statistics import add_gram, has_bfloat16_products

pytestmark = pytest.mark.skipif(
    not has_bfloat16_products(), reason="no bfloat16 products: not this processor, or not built"
)


@pytest.mark.parametrize("tokens", [1, 2, 255, 513])
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_the_upper_half_is_that_of_float64(tokens: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    inputs = torch.randn(tokens, columns, generator=generator).bfloat16()
    gram = torch.ones(columns, columns)
    add_gram(gram, inputs)
    expected = inputs.double().T @ inputs.double()
    torch.testing.assert_close(
        gram.double().triu(), (expected + 1).triu(), rtol=0, atol=2e-6 * (1 + expected.max().item())
    )


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    inputs = torch.randn(100, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(torch.zeros(300, 300))
            add_gram(made[-1], inputs)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)
