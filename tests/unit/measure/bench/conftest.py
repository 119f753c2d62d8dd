"""Benchmarks as documents, made up: nothing here was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gemquant.measure.bench.document import (
    Benchmark,
    Conditions,
    Environment,
    Figures,
    Machine,
    Row,
    Settings,
    Speed,
    Spread,
)

Made = Callable[..., Benchmark]


def figures(decode: list[float]) -> Figures:
    """Figures of a run that decodes at some speeds."""
    steady = Spread.of([0.5] * len(decode))
    speed = Speed(
        first_token_seconds=steady,
        prefill_tokens_per_second=steady,
        decode_tokens_per_second=Spread.of(decode),
    )
    return Figures(
        load_seconds=1.0,
        measured=speed,
        warm_up=None,
        baseline_anonymous_bytes=10,
        peak_anonymous_bytes=100,
        peak_resident_bytes=200,
        peak_device_bytes=None,
        greedy_tokens=(5, 6, 7),
        repeatable=True,
    )


def row(**changed: Any) -> Row:
    """A row of llama.cpp."""
    values: dict[str, Any] = {
        "artifact": "build/model.gguf",
        "container": "gguf",
        "size_bytes": 1000,
        "runtime": "llama.cpp",
        "mode": "default",
        "software": "llama.cpp 1",
        "tokens_as_first_mode": None,
        "figures": figures([10.0, 12.0, 11.0]),
    }
    return Row(**{**values, **changed})


@pytest.fixture
def made() -> Made:
    """Make a benchmark; rows, settings, facts of the machine or of its condition may be given."""

    def make(*rows: Row, libraries: dict[str, str] | None = None, **changed: Any) -> Benchmark:
        machine: dict[str, Any] = {
            "system": "Linux x86_64",
            "processor": "Some CPU",
            "physical_cores": 2,
            "logical_processors": 4,
            "memory_gib": 16,
            "accelerators": (),
            "fingerprint": "a" * 64,
        }
        conditions: dict[str, Any] = {
            "kernel": "6.1",
            "governor": None,
            "clock_mhz": None,
            "clock_limit_mhz": None,
            "power": None,
            "load_average": None,
            "virtual": None,
            "accelerators": (),
        }
        settings: dict[str, Any] = {
            "prompt_tokens": 128,
            "new_tokens": 3,
            "repetitions": 3,
            "warm_up_runs": 0,
            "threads": 2,
            "device": "cpu",
            "dtype": "auto",
        }
        parts = (machine, conditions, settings)
        for name, value in changed.items():
            (part,) = [part for part in parts if name in part]
            part[name] = value
        return Benchmark(
            environment=Environment(
                machine=Machine(**machine),
                conditions=Conditions(**conditions),
                libraries=libraries or {},
            ),
            settings=Settings(**settings),
            prompts={"build/model.gguf": "b" * 64},
            rows=rows,
        )

    return make
