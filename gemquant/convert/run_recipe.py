"""The recipe of ``gemquant run``: models, what they share, and any number of jobs with sweeps."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from gemquant.convert.plugins import quantizer_type
from gemquant.core.options import Option, former_names, options_of, problems_with, recorded_options
from gemquant.core.recipe import SETTINGS, TYPE_WORDS, Recipe, setting_problems, suggest
from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import Attempt, GemquantError, ProblemCollector, UsageError

PRESETS = Path(__file__).with_name("presets")
_MAX_BYTES = 1_000_000
IMATRIX = "imatrix"
"""The job whose result is a file next to the artifacts."""

_JOB_ONLY = {"quantizer": (str,), "name": (str,)}
_LIMITS = {"tool_minutes": (int,), "tool_memory": (str,)}
_TOOL = {"python": (str,), **_LIMITS}
_TOOLKIT = {"toolkit": (str,), "toolkit_version": (str,), "prepare_only": (bool,), **_LIMITS}
"""Keys of a job whose numbers another program, or Rockchip's toolkit, decides."""
_OF_MODEL = {"model": (str,), "models": (list,), "output": (str,)}
_RENAMED = {"compute_dtype": "dtype"}
"""Settings that have another name in a recipe's class."""
_SHARED: Mapping[str, tuple[type, ...]] = {
    "compute_dtype": (str,),
    **{k: v for k, v in SETTINGS.items() if k not in {"model", "quantizer", "options", "dtype"}},
}


@dataclass(frozen=True)
class RunJob:
    """One artifact that a recipe asks for.

    place: where it stands, for messages. title: what ``--only`` matches. recipe: complete but for
    the exporter. name: of its folder; None for one made from the model and the scheme. tool: the
    settings of another program that decides the numbers; None where none does.
    """

    place: str
    title: str
    quantizer: Any
    recipe: Recipe
    name: str | None = None
    tool: Mapping[str, Any] | None = None

    def without_evaluation(self) -> RunJob:
        """The same without a certificate."""
        return replace(self, recipe=replace(self.recipe, eval_windows=0))


@dataclass(frozen=True)
class RunRecipe:
    """A file of models and jobs, read but not expanded.

    source: its name, for messages. output: the folder of the artifacts' folders.
    """

    source: str
    models: Sequence[str]
    output: str | None
    shared: Mapping[str, Any]
    jobs: Sequence[Mapping[str, Any]]

    @classmethod
    def load(cls, file: Path) -> RunRecipe:
        """Read TOML or JSON; every problem of the outermost level at once."""
        values = UntrustedFile(file, _MAX_BYTES).json_or_toml()
        if not isinstance(values, dict):
            raise UsageError(f"{file}: must hold a table of settings.")
        return cls.of(values, str(file))

    @classmethod
    def of(cls, values: Mapping[str, Any], file: str) -> RunRecipe:
        """The same from a mapping. file: its name, for messages."""
        problems, values = ProblemCollector(), dict(values)
        jobs = values.pop("jobs", None)
        if not isinstance(jobs, list) or not jobs or not all(isinstance(j, dict) for j in jobs):
            problems.append(
                UsageError(
                    f"{file}: has no jobs.",
                    hint='A job is a table: [[jobs]], then quantizer = "awq". See a whole recipe: '
                    "gemquant run --preset publish --show",
                )
            )
        problems += setting_problems(values, file, {**_OF_MODEL, **_SHARED})
        if "model" in values and "models" in values:
            problems.append(UsageError(f"{file}: has both model and models.", hint="Name one."))
        models = values.get("models", [values["model"]] if "model" in values else [])
        if not all(isinstance(each, str) for each in models):
            problems.append(UsageError(f"{file}: models must be a list of strings."))
        problems.refuse()
        shared = {key: value for key, value in values.items() if key not in _OF_MODEL}
        return cls(file, models, values.get("output"), shared, jobs or [])

    def for_models(self, models: Sequence[str]) -> RunRecipe:
        """The same jobs for other models, where any are named."""
        return replace(self, models=models) if models else self

    def expand(self, tools: Mapping[str, type[Any]], problems: ProblemCollector) -> list[RunJob]:
        """One job for each model, table and value of a sweep; append every problem.

        tools: options of the programs that decide numbers themselves, by quantizer or engine.
        """
        if not self.models:
            problems.append(
                UsageError(
                    f"{self.source}: names no model.",
                    hint=f'gemquant run {self.source} MODEL, or: model = "google/gemma-3-1b-it"',
                )
            )
        return [
            job
            for number, table in enumerate(self.jobs, 1)
            for job in self._of_table(table, f"{self.source}, job {number}", tools, problems)
        ]

    def _of_table(
        self,
        table: Mapping[str, Any],
        place: str,
        tools: Mapping[str, type[Any]],
        problems: ProblemCollector,
    ) -> Iterator[RunJob]:
        name = table.get("quantizer")
        if not isinstance(name, str):
            problems.append(UsageError(f"{place}: quantizer is missing."))
            return
        place = f"{place} ({name})"
        tool = tools.get(table["engine"] if isinstance(table.get("engine"), str) else name)
        found = problems.attempt(partial(quantizer_type, name)) if tool is None else Attempt(tool)
        if not found.succeeded:
            return
        options = {each.name: each for each in options_of(found.value)}
        former = former_names(found.value)
        of_tool = _TOOLKIT if name == "rkllm" else _TOOL if tool is not None else {}
        of_tool = {} if name == IMATRIX else of_tool
        own = {**_JOB_ONLY, **of_tool}
        values = {former.get(key, key): v for key, v in table.items() if key not in own}
        settings = {key: v for key, v in values.items() if key in _SHARED and key not in options}
        wrong = [
            *_unknown(values, options, place),
            *setting_problems(settings, place, _SHARED),
            *setting_problems({key: table[key] for key in own if key in table}, place, own),
        ]
        given = {key: options[key] for key in values if key in options}
        swept = {key: _values(values[key], option) for key, option in given.items()}
        for key, option in given.items():
            wrong += _type_problems(f"{place}: {key}", swept[key], option)
        combinations = list(itertools.product(*swept.values()))
        if "name" in table and len(combinations) * len(self.models) > 1:
            wrong.append(
                UsageError(
                    f"{place}: name = {table['name']!r} for {len(combinations)} artifacts of "
                    f"{len(self.models)} model(s): a name is for one.",
                    hint="Leave it out; folders are then named after model and scheme.",
                )
            )
        problems += wrong
        if wrong:
            return
        target = getattr(found.value, "target", Recipe.target)
        recipe = _recipe({"target": target, **self.shared, **settings}, name)
        problems += [UsageError(f"{place}: {each}") for each in recipe.problems()]
        for combination in combinations:
            quantizer = found.value(**dict(zip(swept, combination, strict=True)))
            problems += [UsageError(f"{place}: {each}") for each in problems_with(quantizer)]
            for model in self.models:
                made = replace(recipe, model=model, options=recorded_options(quantizer))
                yield RunJob(
                    place,
                    _title(quantizer, swept),
                    quantizer,
                    made,
                    table.get("name"),
                    None if tool is None else {k: table[k] for k in of_tool if k in table},
                )


def preset_names() -> list[str]:
    """Names of the recipes that come along."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> Path:
    """The file of a recipe that comes along; UsageError where there is none."""
    if name not in (names := preset_names()):
        raise UsageError(f"--preset {name}: no such preset.", hint=suggest(name, names))
    return PRESETS / f"{name}.toml"


def _title(quantizer: Any, swept: Mapping[str, Sequence[Any]]) -> str:
    """``gguf-Q4_K_M``, ``awq``, or of a sweep ``awq-group_size=32``."""
    several = [f"{key}={getattr(quantizer, key)}" for key, values in swept.items() if values[1:]]
    label = getattr(quantizer, "label", "")
    return "-".join([quantizer.name, *([label] if label else several)])


def _recipe(values: Mapping[str, Any], quantizer: str) -> Recipe:
    given = {_RENAMED.get(key, key): value for key, value in values.items()}
    if given.get("eval_slices") is not None:
        given["eval_slices"] = tuple(given["eval_slices"])
    adapters = given.get("lora") or ()
    given["lora"] = (adapters,) if isinstance(adapters, str) else tuple(adapters)
    known = {field.name for field in fields(Recipe)}
    return Recipe(model="", quantizer=quantizer, **{k: v for k, v in given.items() if k in known})


def _unknown(
    values: Mapping[str, Any], options: Mapping[str, Option], place: str
) -> Iterator[GemquantError]:
    """Keys that are none, and sweeps over settings."""
    known = [*options, *_SHARED]
    for key, value in values.items():
        if key not in known:
            yield UsageError(f"{place}: no such option: {key}.", hint=suggest(key, known))
        elif key not in options and isinstance(value, list) and list not in _SHARED[key]:
            yield UsageError(
                f"{place}: {key} = {value}: only the quantizer's own options take a list of "
                f"values to try.",
                hint=f"They are: {', '.join(options)}. For {key}, write a job for each value.",
            )


def _values(value: Any, option: Option) -> list[Any]:
    """The values to make an artifact with each: a list is a sweep, of tuples a list of lists."""
    if typing.get_origin(option.type) is not tuple:
        return value if isinstance(value, list) else [value]
    if isinstance(value, list) and value and all(isinstance(each, list) for each in value):
        return [tuple(each) for each in value]
    return [tuple(value) if isinstance(value, list) else (value,)]


def _type_problems(what: str, values: Sequence[Any], option: Option) -> list[GemquantError]:
    if not values:
        return [UsageError(f"{what} = []: needs at least one value.")]
    repeated = [value for n, value in enumerate(values) if value in values[:n]]
    wanted = str if typing.get_origin(option.type) is tuple else option.type
    allowed = (int, float) if wanted is float else (wanted,)
    parts = [part for v in values for part in (v if isinstance(v, tuple) else (v,))]
    words = {float: "a number", **TYPE_WORDS}[wanted]
    return [
        *(UsageError(f"{what}: {value!r} is given twice.") for value in repeated),
        *(
            UsageError(f"{what} = {part!r}: must be {words}.")
            for part in parts
            if type(part) not in allowed
        ),
    ]
