"""Checks a user's folder of task files for code before lm-eval reads it.

lm-eval's task files are YAML in which ``!function module.name`` imports Python, ``include`` reads
another file, and unknown metrics are downloaded, as code, from a hub. A folder from somebody else
is data: all of that is refused unless the user allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from gemquant.errors import GemquantError, ProblemCollector, UnsupportedError, UsageError

ALLOW = "--allow-task-code"
_LIMIT_BYTES = 4_000_000
_PICKLED = {"pandas", "pickle"}
"""Loaders of ``datasets`` that unpickle."""


class _Code:
    """Replaces a ``!function`` tag."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no annotations
    """Plain YAML; every custom tag becomes a _Code."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> _Code:
    del loader, suffix
    return _Code(str(getattr(node, "value", "")))


_Loader.add_multi_constructor("!", _tagged)


def folder_problems(
    folder: Path, *, code_allowed: bool, knows_metric: Callable[[str], bool]
) -> list[GemquantError]:
    """Return everything in a folder's task files that is refused; run and import nothing.

    knows_metric: whether lm-eval itself has a metric of that name.
    """
    if not folder.is_dir():
        return [UsageError(f"--task-folder {folder}: not a folder.")]
    files = sorted(path for path in folder.rglob("*.yaml") if "__pycache__" not in path.parts)
    if not files:
        return [
            UsageError(
                f"--task-folder {folder}: contains no .yaml file.", hint="docs/tasks.md shows one."
            )
        ]
    problems = ProblemCollector()
    seen: set[Path] = set()
    while files:
        path = files.pop(0)
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        attempt = problems.attempt(partial(_read, path, folder))
        if not attempt.succeeded:
            continue
        read = attempt.value
        included = list(_included(read, path))
        files += included
        if not code_allowed:
            problems += [_refused(path, what) for what in _code(read, knows_metric)]
    return problems


def task_names(folder: Path) -> set[str]:
    """Return the names of tasks, groups and tags that a folder of readable files defines."""
    names: set[str] = set()
    for path in folder.rglob("*.yaml"):
        read = _read(path, folder)
        for key in ("task", "group", "tag"):
            value = read.get(key)
            names |= {value} if isinstance(value, str) else set()
            if key == "tag" and isinstance(value, list):
                names |= set(map(str, value))
    return names


def _read(path: Path, folder: Path) -> Mapping[str, Any]:
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside:
        raise UnsupportedError(f"{path}: outside the task folder {folder}.")
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise UsageError(f"{path}: larger than {_LIMIT_BYTES} bytes.")
        with path.open("rb") as file:
            read = yaml.load(file, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UsageError(f"{path}: not valid YAML: {message}.") from None
    if not isinstance(read, Mapping):
        raise UsageError(f"{path}: a task file must contain a mapping.")
    return read


def _included(read: Mapping[str, Any], path: Path) -> Iterator[Path]:
    for table in _tables(read):
        include = table.get("include", ())
        for name in [include] if isinstance(include, str) else include or ():
            yield path.parent / str(name)


def _code(read: Mapping[str, Any], knows_metric: Callable[[str], bool]) -> Iterator[str]:
    """Describe everything that would run Python from outside lm-eval."""
    for value in _values(read):
        if isinstance(value, _Code):
            yield f"!function {value.name}"
    for table in _tables(read):
        source = str(table.get("dataset_path", ""))
        if source in _PICKLED or source.endswith(".py"):
            yield f"dataset_path {source}"
        kwargs = table.get("dataset_kwargs")
        if isinstance(kwargs, Mapping) and kwargs.get("trust_remote_code"):
            yield "trust_remote_code"
        for metric in _sequence(table.get("metric_list")):
            name = metric.get("metric") if isinstance(metric, Mapping) else None
            if isinstance(name, str) and (metric.get("hf_evaluate") or not knows_metric(name)):
                yield f"the metric {name}, which is code on a hub"


def _refused(path: Path, what: str) -> GemquantError:
    return UnsupportedError(
        f"{path}: {what}: would run Python that comes with the task.",
        hint=f"Read it, then pass {ALLOW}.",
    )


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _tables(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every mapping in a document, including itself."""
    return (each for each in _values(value) if isinstance(each, Mapping))


def _values(value: Any) -> Iterator[Any]:
    """Yield every value in a document, each object once however many aliases it has."""
    waiting, seen = [value], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set):
            waiting += each
