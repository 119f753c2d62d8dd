"""A saved benchmark is read back, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from gemquant.errors import UsageError
from gemquant.measure.bench.document import Benchmark, Spread
from tests.unit.measure.bench.conftest import Made, row

SCHEMA = Path(__file__).parents[4] / "docs" / "bench.schema.json"


def test_a_spread_is_median_and_range() -> None:
    found = Spread.of([3.0, 1.0, 10.0, 2.0])
    assert (found.median, found.minimum, found.maximum) == (2.5, 1.0, 10.0)
    assert found.values == (3.0, 1.0, 10.0, 2.0)


def test_what_is_saved_is_what_is_read(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    file.write_text(json.dumps(made(row()).model_dump(mode="json")))
    assert Benchmark.read(file) == made(row())


def test_what_is_saved_fits_the_documented_schema(made: Made) -> None:
    document = made(row(), row(figures=None, not_run="no")).model_dump(mode="json")
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "environment: Field required"),
        ("no json", "document: Invalid JSON"),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
    ],
)
def test_another_document_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        Benchmark.read(file)


def test_a_missing_document_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        Benchmark.read(tmp_path / "none.json")
    assert "bench ARTIFACT -o before.json" in str(refused.value)
