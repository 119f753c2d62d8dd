"""The report as JSON: it can be read back, and its schema describes it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from gemquant.measure.report.document import Report
from tests.helpers.tiny_report import check, report

SCHEMA = Path(__file__).parents[4] / "docs" / "report.schema.json"


def test_it_is_read_back_as_it_was() -> None:
    made = report(check("regression"))
    assert Report.model_validate_json(made.to_json()) == made


def test_the_published_schema_describes_it() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(report(check()).to_json()), schema)
