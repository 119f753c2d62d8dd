from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.errors import UsageError
from tests.helpers.tiny_evaluation import document


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_bytes(document().to_json())
    assert EvaluationDocument.read(tmp_path / "eval.json") == document()


def test_nan_is_refused_by_name(tmp_path: Path) -> None:
    text = document().to_json().decode().replace('"kl_max": 3.0', '"kl_max": NaN')
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(UsageError, match=r"eval\.json"):
        EvaluationDocument.read(tmp_path / "eval.json")


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    text = document(windows=1).to_json().decode()
    text = text.replace('"tokens": [\n', '"tokens": [\n 7,\n', 1)
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(UsageError, match=r"columns of \[1, 2\] entries"):
        EvaluationDocument.read(tmp_path / "eval.json")
