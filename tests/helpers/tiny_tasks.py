"""A folder of tiny tasks with local data, in the words that the tiny tokenizer knows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from gemquant.measure.tasks.document import Settings

_WORDS = "the of and to in is that for with as on it was by this are from not have be".split()


def _phrase(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(count))


def _write(folder: Path, name: str, rows: list[dict[str, Any]], task: dict[str, Any]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    described = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **task,
    }
    text = yaml.safe_dump(described, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def write_tiny_tasks(folder: Path, *, samples: int = 8) -> Path:
    """Write ``tiny_choice``, ``tiny_letters``, ``tiny_text`` and ``tiny_answer``."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    choices = [
        {
            "question": _phrase(draw, draw.randint(3, 20)),
            "choices": [_phrase(draw, draw.randint(1, 5)) for _ in range(3)],
            "answer": draw.randrange(3),
        }
        for _ in range(samples)
    ]
    common = {"doc_to_text": "{{question}}", "doc_to_target": "answer"}
    _write(
        folder,
        "tiny_choice",
        choices,
        {**common, "output_type": "multiple_choice", "doc_to_choice": "choices"},
    )
    _write(
        folder,
        "tiny_letters",
        choices,
        {**common, "output_type": "multiple_choice", "doc_to_choice": ["a", "b", "c"]},
    )
    pages = [{"page": _phrase(draw, draw.randint(30, 60))} for _ in range(samples)]
    _write(
        folder,
        "tiny_text",
        pages,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [
                {"metric": "word_perplexity"},
                {"metric": "byte_perplexity"},
                {"metric": "bits_per_byte"},
            ],
        },
    )
    answers = [{"question": _phrase(draw, 12), "answer": draw.choice(_WORDS)} for _ in range(4)]
    _write(
        folder,
        "tiny_answer",
        answers,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [" e"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            ],
        },
    )
    return folder


def task_settings(**changes: Any) -> Settings:
    """Settings of a run on a tiny Gemma."""
    plain = {
        "limit": None,
        "num_fewshot": None,
        "chat_template": False,
        "max_length": 512,
        "batch_size": 1,
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "task_code": False,
    }
    return Settings.model_validate({**plain, **changes})
