from __future__ import annotations

import pytest

from gemquant.numerics.t_distribution import quantile


# scipy 1.17.1: scipy.stats.t.ppf(confidence, freedom)
@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    [
        (0.975, 1, 12.706204736174694),
        (0.975, 2, 4.302652729749462),
        (0.95, 3, 2.3533634348018233),
        (0.9995, 3, 12.923978636687961),
        (0.99, 15, 2.6024802950111225),
        (0.9998, 24, 4.1089079385651415),
        (0.975, 1000, 1.9623390808264083),
    ],
)
def test_quantiles_are_those_of_the_tables(
    confidence: float, freedom: int, expected: float
) -> None:
    assert quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)
