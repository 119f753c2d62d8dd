"""The document of a benchmark: settings, machine, conditions, one row per measurement.

The JSON Schema in ``docs/bench.schema.json`` is generated from these models.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field

from gemquant.core.json_document import Document, Record


class Spread(Record):
    """A figure that was measured several times."""

    median: float = Field(description="Median of all repetitions.")
    minimum: float = Field(description="Smallest of them.")
    maximum: float = Field(description="Largest of them.")
    values: tuple[float, ...] = Field(description="Every repetition, in the order of running.")

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise repetitions."""
        return cls(
            median=statistics.median(values),
            minimum=min(values),
            maximum=max(values),
            values=tuple(values),
        )


class Speed(Record):
    """Prompt in, tokens out, over some runs."""

    first_token_seconds: Spread = Field(
        description="From the prompt's token ids to the first new token in the program's hands."
    )
    prefill_tokens_per_second: Spread = Field(
        description="Prompt tokens over the seconds until their logits are there, preparations of "
        "the runtime included."
    )
    decode_tokens_per_second: Spread = Field(
        description="New tokens but the first over the seconds from the first to the last."
    )


class RuntimeStatistics(Record):
    """A runtime's own figures, by its own clock, over the repetitions that count."""

    prompt_tokens: int = Field(
        description="Prompt tokens that it computed, the fewest of all runs. Fewer than the prompt "
        "has: some were cached; more: the runtime added some."
    )
    prefill_tokens_per_second: Spread = Field(description="Prompt tokens over its seconds.")
    decode_tokens_per_second: Spread = Field(description="New tokens over its seconds.")
    peak_resident_bytes: int = Field(description="Largest resident memory that it reported.")


class Figures(Record):
    """What was measured in one process."""

    load_seconds: float = Field(
        description="From opening the files, which the system's cache holds as far as it can, "
        "until the runtime can compute; modules that it imports only then count."
    )
    measured: Speed = Field(description="The repetitions that count.")
    warm_up: Speed | None = Field(description="The runs before them, which do not count.")
    baseline_anonymous_bytes: int | None = Field(
        description="Anonymous memory of the process before loading: Python and libraries. Null "
        "on systems that do not report it (all but Linux)."
    )
    peak_anonymous_bytes: int | None = Field(
        description="Largest anonymous memory of the process, sampled every 10 ms: everything "
        "allocated; mapped weights do not count."
    )
    peak_resident_bytes: int | None = Field(
        description="Largest resident memory of the process as the system reports it: mapped "
        "weights count."
    )
    peak_device_bytes: int | None = Field(
        description="Largest memory allocated on the accelerator; null without one, or if the "
        "runtime does not report it."
    )
    greedy_tokens: tuple[int, ...] = Field(description="Token ids that the first run generated.")
    repeatable: bool = Field(description="Every run generated the same tokens.")
    runtime_statistics: RuntimeStatistics | None = Field(
        default=None, description="Null if the runtime has none."
    )


class Row(Record):
    """One artifact in one mode of one runtime."""

    artifact: str = Field(description="The artifact as the user named it.")
    container: str = Field(
        description="Its container format; `safetensors` where it is a plain folder."
    )
    size_bytes: int = Field(description="Size of its files, the manifest and the card left out.")
    runtime: str = Field(description="What ran it: `llama.cpp`, `transformers`, `mlx-lm`, …")
    mode: str = Field(description="How: one of the runtime's modes.")
    software: str | None = Field(
        description="Versions, type computed in and place, as the runtime reports them; null if "
        "nothing ran."
    )
    tokens_as_first_mode: int | None = Field(
        description="How many tokens from the first on equal those of the first mode of the same "
        "artifact and runtime that ran; null for that mode itself."
    )
    figures: Figures | None = Field(description="What was measured; null if nothing was.")
    not_run: str | None = Field(default=None, description="Why nothing was measured.")

    @property
    def key(self) -> tuple[str, str, str]:
        """What rows of two documents are matched by."""
        return Path(self.artifact).name, self.runtime, self.mode


class Settings(Record):
    """Settings of the run; rows of different settings are not compared."""

    prompt_tokens: int = Field(description="Length of the prompt, BOS included.")
    new_tokens: int = Field(description="How many tokens are generated, greedily.")
    repetitions: int = Field(description="Runs that count.")
    warm_up_runs: int = Field(description="Runs before them.")
    threads: int = Field(
        description="Processor threads of the runtime; 0 on a board, whose runtime decides."
    )
    device: str = Field(description="`cpu`, `cuda`, `cuda:1`, `mps`; `npu` of a board.")
    dtype: str = Field(
        description="Type requested of the runtime; `auto` for the type of the files."
    )


class Accelerator(Record):
    """One GPU."""

    name: str = Field(description="As its driver names it.")
    memory_bytes: int | None = Field(description="All of its memory.")
    driver: str | None = Field(description="Version of the driver; null where unknown.")
    compute_capability: str | None = Field(description="NVIDIA's; null for others.")


class Machine(Record):
    """What does not change between runs; results are compared within one machine only."""

    system: str = Field(description="Operating system and architecture.")
    processor: str = Field(description="Model of the processor.")
    physical_cores: int | None = Field(description="Physical cores that the process may use.")
    logical_processors: int = Field(description="Logical processors that it may use.")
    memory_gib: int | None = Field(description="Memory in GiB, rounded.")
    accelerators: tuple[Accelerator, ...] = Field(description="GPUs that the system reports.")
    fingerprint: str = Field(description="SHA-256 over all of the above but driver versions.")

    @classmethod
    def of(cls, accelerators: Sequence[Accelerator], **facts: str | int | None) -> Self:
        """A machine with its fingerprint. facts: the other fields."""
        gpus = [gpu.model_dump(exclude={"driver"}) for gpu in accelerators]
        text = json.dumps({**facts, "accelerators": gpus}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return cls.model_validate({**facts, "accelerators": accelerators, "fingerprint": digest})


class Conditions(Record):
    """What may change between runs of one machine; null if the system does not report it."""

    kernel: str = Field(description="Version of the operating system's kernel.")
    governor: str | None = Field(description="Frequency governor of the processors.")
    clock_mhz: str | None = Field(description="Lowest and highest current clock of the processors.")
    clock_limit_mhz: str | None = Field(description="Highest clock that they may reach.")
    power: str | None = Field(description="Mains or battery, and the power profile.")
    load_average: float | None = Field(
        description="Processes ready to run in the minute before: above 0, others compete."
    )
    virtual: bool | None = Field(description="Whether the processor says that it is virtual.")
    accelerators: tuple[str, ...] = Field(
        description="Power state, clocks and power limit of each GPU, as its driver reports them."
    )


class Environment(Record):
    """Where it ran."""

    machine: Machine
    conditions: Conditions
    libraries: Mapping[str, str | None] = Field(description="Versions; null if not installed.")


class Range(Record):
    """Lowest and highest of the samples after every run."""

    lowest: float = Field(description="Lowest of all.")
    highest: float = Field(description="Highest of all.")


class Board(Record):
    """A board that was measured on instead of this machine."""

    platform: str = Field(description="Its chip.")
    npu_driver: str | None = Field(description="Version of the NPU's driver.")
    fixed_clocks: bool = Field(
        description="Governors held NPU, memory and processors at their highest clocks."
    )
    clocks_before: Mapping[str, str] = Field(description="Governor and clock of each.")
    clocks_after: Mapping[str, str] = Field(description="The same afterwards; empty if unknown.")
    celsius_before: Mapping[str, float] = Field(description="Every sensor, °C.")
    celsius_after: Mapping[str, float] = Field(description="The same afterwards.")
    clocks_mhz: Mapping[str, Range] = Field(description="Clocks after every run.")
    celsius: Mapping[str, Range] = Field(description="Sensors after every run, °C.")
    throttled: bool = Field(description="The kernel lowered clocks at some time because of heat.")


class Benchmark(Document):
    """All that one call of `gemquant bench` measured."""

    noun: ClassVar[str] = "benchmark"
    hint: ClassVar[str] = "Save one with: gemquant bench ARTIFACT -o before.json"
    place: ClassVar[str] = "as --bench"

    environment: Environment
    settings: Settings
    prompts: Mapping[str, str] = Field(
        description="SHA-256 of the prompt's ids (int32, little-endian) by artifact."
    )
    rows: tuple[Row, ...] = Field(description="One per artifact, runtime and mode.")
    board: Board | None = Field(
        default=None, description="Where it ran, if not on this machine; null if it did."
    )
