"""Checks a user's folder of task files for code before lm-eval reads it.

lm-eval's task files are YAML in which ``!function module.name`` imports Python, ``include`` reads
another file, and unknown metrics are downloaded, as code, from a hub. A folder from somebody else
is data: all of that is refused unless the user allows it. The check is not the only defence:
``data_loader`` replaces lm-eval's YAML loader by one that cannot import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import GemquantError, ProblemCollector, UnsupportedError, UsageError

ALLOW = "--allow-task-code"
_LIMIT_BYTES = 4_000_000
_PICKLED = {"pandas", "pickle"}
"""Loaders of ``datasets`` that unpickle."""
_LOCAL = {"arrow", "csv", "json", "parquet", "text", "xml"}
"""Loaders of ``datasets`` for files that the task names."""
_STANDARD_TAGS = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no annotations
    """Plain YAML; a value with a custom tag becomes None."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


class _DataLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML; a custom tag raises."""


def _refuse_tag(_loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> None:
    raise _refused(node.start_mark.name, f"!{suffix} {_text(node)}")


_DataLoader.add_multi_constructor("!", _refuse_tag)


def data_loader(
    original: Callable[..., type[Any]], trusted: Path
) -> Callable[..., type[yaml.SafeLoader]]:
    """Return a replacement of lm-eval's ``_make_loader`` whose YAML cannot import anything.

    original: lm-eval's; it still serves the files below ``trusted``, which are lm-eval's tasks.
    """
    trusted = trusted.resolve()

    def make_loader(base_dir: Path, *, resolve_funcs: bool) -> type[yaml.SafeLoader]:
        if base_dir.resolve().is_relative_to(trusted):
            return original(base_dir, resolve_funcs=resolve_funcs)
        return _DataLoader

    return make_loader


@dataclass(frozen=True)
class _TaskFile:
    """A task file. path: resolved. code: its custom tags, also in overwritten and merged keys."""

    path: Path
    content: Mapping[str, Any]
    code: Sequence[str]


def folder_problems(
    folder: Path, *, code_allowed: bool, knows_metric: Callable[[str], bool]
) -> list[GemquantError]:
    """Return everything in a folder's task files that is refused; run and import nothing.

    knows_metric: whether lm-eval itself has a metric of that name.
    """
    if not folder.is_dir():
        return [UsageError(f"--task-folder {folder}: not a folder.")]
    if not _task_files(folder):
        hint = "docs/tasks.md shows one."
        return [UsageError(f"--task-folder {folder}: contains no .yaml file.", hint=hint)]
    problems = ProblemCollector()
    for path, file in _with_included(folder, problems):
        if not code_allowed:
            problems += [_refused(path, code) for code in _code(file, knows_metric)]
            problems += [
                UnsupportedError(
                    f"{path}: {url}: a task file may not fetch data from an address.",
                    hint=f"Download the file and name its path, or pass {ALLOW}.",
                )
                for url in _urls(file)
            ]
    return problems


def is_local(folder: Path) -> bool:
    """Whether all data of a folder of readable task files is in local files."""
    files = [file for _, file in _with_included(folder, ProblemCollector())]
    if any(url for file in files for url in _urls(file)):
        return False
    tables = [table for file in files for table in _tables(file.content)]
    sources = [str(table["dataset_path"]) for table in tables if "dataset_path" in table]
    return all(source in _LOCAL or Path(source).is_dir() for source in sources)


def task_names(folder: Path) -> set[str]:
    """Return the names of tasks, groups and tags that a folder of readable files defines."""
    names: set[str] = set()
    for path in _task_files(folder):
        content = _read(path, folder).content
        for key in ("task", "group", "tag"):
            value = content.get(key)
            names |= {value} if isinstance(value, str) else set()
            if key == "tag" and isinstance(value, list):
                names |= set(map(str, value))
    return names


def _task_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.yaml") if "__pycache__" not in path.parts)


def _with_included(folder: Path, problems: ProblemCollector) -> Iterator[tuple[Path, _TaskFile]]:
    """Yield a folder's files and those that they include, each once, if they can be read."""
    waiting, seen = _task_files(folder), set[Path]()
    while waiting:
        path = waiting.pop(0)
        if path.resolve() not in seen:
            seen.add(path.resolve())
            attempt = problems.attempt(partial(_read, path, folder))
            if attempt.succeeded:
                yield path, attempt.value
                waiting += _included(attempt.value)


def _read(path: Path, folder: Path) -> _TaskFile:
    # Resolved once, as lm-eval does: a file included by a link is in the link's target's folder.
    resolved = path.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise UnsupportedError(f"{path}: outside the task folder {folder}.")
    file = UntrustedFile(resolved, _LIMIT_BYTES, label=str(path)).bytes()
    try:
        loader = _Loader(file)
        node = loader.get_single_node()
        code = [] if node is None else list(_tags(node))
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UsageError(f"{path}: not valid YAML: {message}.") from None
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: a task file must contain a mapping.")
    return _TaskFile(resolved, content, code)


def _tags(root: yaml.Node) -> Iterator[str]:
    """Describe the nodes with custom tags; a later or nearer key may hide some of them."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if not node.tag.startswith(_STANDARD_TAGS):
            yield f"{node.tag} {_text(node)}".strip()
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _text(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _included(file: _TaskFile) -> Iterator[Path]:
    for table in _tables(file.content):
        include = table.get("include", ())
        for name in [include] if isinstance(include, str) else include or ():
            yield file.path.parent / str(name)


def _code(file: _TaskFile, knows_metric: Callable[[str], bool]) -> Iterator[str]:
    """Describe everything that would run Python from outside lm-eval."""
    yield from file.code
    for table in _tables(file.content):
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


def _urls(file: _TaskFile) -> Iterator[str]:
    """Yield the addresses from which data would be fetched."""
    for table in _tables(file.content):
        for key in ("dataset_path", "dataset_kwargs"):
            for value in _values(table.get(key)):
                if isinstance(value, str) and "://" in value:
                    yield value


def _refused(path: Path | str, what: str) -> GemquantError:
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
