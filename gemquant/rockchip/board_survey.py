"""What a board reports about itself, through one ``sh`` script (``programs/survey.sh``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gemquant.errors import WorkerError
from gemquant.rockchip.board_connection import BoardAddress, ask, printable
from gemquant.rockchip.programs import PROGRAMS

SCRIPT = PROGRAMS / "survey.sh"
_SECONDS = 60.0
_DRIVER = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class Clock:
    """The clock of a processor cluster or a device.

    kind: ``cpu`` or ``devfreq``. path: the file with the current clock. hertz: None if unknown.
    """

    kind: str
    name: str
    governor: str
    path: str
    hertz: int | None
    highest_hertz: int | None

    @property
    def governor_path(self) -> str:
        """Path of the governor's file."""
        name = "scaling_governor" if self.kind == "cpu" else "governor"
        return f"{self.path.rpartition('/')[0]}/{name}"

    @property
    def is_fixed(self) -> bool:
        """Whether the governor holds the clock at its maximum."""
        return self.governor == "performance" or (
            self.governor == "userspace" and self.hertz == self.highest_hertz
        )

    def words(self) -> str:
        """Governor and clock: ``performance, 1000 of 1000 MHz``."""
        current, highest = (_megahertz(each) for each in (self.hertz, self.highest_hertz))
        return f"{self.governor}, {current} of {highest} MHz"


@dataclass(frozen=True)
class Temperature:
    """A sensor. limit: °C from which the kernel throttles, the highest passive trip point."""

    name: str
    path: str
    celsius: float
    limit: float | None


@dataclass(frozen=True)
class Cooling:
    """A cooling device. state: 0 if not in use; for clocks, the number of steps removed."""

    name: str
    path: str
    state: int

    @property
    def slows(self) -> bool:
        """Whether it reduces clocks; fans do not."""
        return "freq" in self.name and self.state > 0


@dataclass(frozen=True)
class Library:
    """A ``librkllmrt.so``. versions: version numbers found in the file."""

    path: str
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """The state of a board. None for what it does not report.

    system: operating system and architecture. compatible: names in the device tree, the board's
    first. driver: version of the NPU driver. spaces: writable folders with their free bytes.
    """

    system: str
    kernel: str
    model: str | None
    compatible: tuple[str, ...]
    load_average: float | None
    processors: int | None
    memory_bytes: int | None
    available_bytes: int | None
    driver: str | None
    clocks: tuple[Clock, ...]
    temperatures: tuple[Temperature, ...]
    cooling: tuple[Cooling, ...]
    python: str | None
    python_version: tuple[int, ...]
    libraries: tuple[Library, ...]
    spaces: tuple[tuple[str, int], ...]

    @property
    def platform(self) -> str | None:
        """The chip, from the last name in the device tree: ``rk3588``."""
        names = [name.partition(",")[2] for name in self.compatible if name.startswith("rockchip,")]
        # The RK3588S is the same chip with fewer pins; the toolkit treats it so.
        return re.sub(r"^(rk3588)s$", r"\1", names[-1]) if names else None

    @property
    def cpu_clocks(self) -> list[Clock]:
        """The clocks of the processor clusters."""
        return [each for each in self.clocks if each.kind == "cpu"]

    @property
    def npu(self) -> Clock | None:
        """The NPU's clock."""
        return next((c for c in self.clocks if c.kind == "devfreq" and "npu" in c.name), None)

    @property
    def memory_clock(self) -> Clock | None:
        """The clock of the memory controller."""
        return next((c for c in self.clocks if c.kind == "devfreq" and "dmc" in c.name), None)

    @property
    def speed_clocks(self) -> list[Clock]:
        """The clocks that decide the speed: processors, NPU, memory."""
        return [*self.cpu_clocks, *filter(None, (self.npu, self.memory_clock))]

    @property
    def hottest(self) -> Temperature | None:
        """The hottest sensor."""
        return max(self.temperatures, key=lambda each: each.celsius, default=None)

    def watched(self) -> dict[str, str]:
        """Files that change while the board computes, by their meaning."""
        return {
            **{f"clock {each.name}": each.path for each in self.speed_clocks},
            **{f"temperature {each.name}": each.path for each in self.temperatures},
            **{f"cooling {each.name}": each.path for each in self.cooling if "freq" in each.name},
        }


def survey(board: BoardAddress) -> Survey:
    """Survey a board; WorkerError if it cannot be reached or its answer is not valid."""
    output = ask(board, SCRIPT.read_text(encoding="utf-8"), seconds=_SECONDS)
    return read_survey(output, board.text)


def read_survey(output: str, name: str) -> Survey:
    """Parse the script's output; other lines are ignored."""
    facts: dict[str, list[list[str]]] = {}
    for line in output.splitlines():
        key, *values = [printable(part).strip() for part in line.split("\t")]
        if values:
            facts.setdefault(key, []).append(values)
    system = _first(facts, "system")
    if system is None:
        raise WorkerError(f"{name}: the answer is not a survey: {output[:80]!r}.")
    load = re.match(r"\d+(\.\d+)?", _first(facts, "load") or "")
    memory = {each[0]: each[-1] for each in facts.get("memory", ())}
    python = next((each for each in facts.get("python", ()) if len(each) == 2), None)
    return Survey(
        system=system,
        kernel=_first(facts, "kernel") or "unknown",
        model=_first(facts, "model"),
        compatible=tuple((_first(facts, "compatible") or "").split()),
        load_average=float(load[0]) if load else None,
        processors=_int(_first(facts, "processors")),
        memory_bytes=_bytes(memory.get("MemTotal")),
        available_bytes=_bytes(memory.get("MemAvailable")),
        driver=_driver(facts.get("driver", ())),
        clocks=tuple(_clocks(facts)),
        temperatures=tuple(_temperatures(facts.get("thermal", ()))),
        cooling=tuple(
            Cooling(each[0], each[1], _int(each[2]) or 0)
            for each in facts.get("cooling", ())
            if len(each) == 3
        ),
        python=python[0] if python else None,
        python_version=tuple(int(n) for n in re.findall(r"\d+", python[1])) if python else (),
        libraries=tuple(
            Library(each[0], tuple(" ".join(each[1:]).split())) for each in facts.get("library", ())
        ),
        spaces=tuple(
            (each[0], free)
            for each in facts.get("space", ())
            if len(each) == 2 and (free := _bytes(each[1])) is not None
        ),
    )


def _clocks(facts: dict[str, list[list[str]]]) -> list[Clock]:
    clocks = []
    for kind, unit in (("cpu", 1000), ("devfreq", 1)):  # cpufreq reports kHz, devfreq Hz
        for each in facts.get(kind, ()):
            if len(each) == 5:
                name, governor, path, *numbers = each
                hertz, highest = (None if (n := _int(t)) is None else n * unit for t in numbers)
                clocks.append(Clock(kind, name, governor, path, hertz, highest))
    return clocks


def _temperatures(lines: Sequence[Sequence[str]]) -> list[Temperature]:
    sensors = []
    for each in lines:
        if len(each) == 4 and (current := _int(each[2])) is not None:
            limit = _int(each[3])
            celsius = None if limit is None else limit / 1000
            sensors.append(Temperature(each[0], each[1], current / 1000, celsius))
    return sensors


def _driver(lines: Sequence[Sequence[str]]) -> str | None:
    numbers = (_DRIVER.search(" ".join(each)) for each in lines)
    return next((match[0] for match in numbers if match), None)


def _first(facts: dict[str, list[list[str]]], key: str) -> str | None:
    return next((" ".join(each) for each in facts.get(key, ()) if each[0]), None)


def _bytes(kibibytes: str | None) -> int | None:
    number = _int(kibibytes)
    return None if number is None else number * 1024


def _int(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None


def _megahertz(hertz: int | None) -> str:
    return "unknown" if hertz is None else f"{hertz / 1e6:.0f}"
