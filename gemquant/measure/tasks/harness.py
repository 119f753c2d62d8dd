"""lm-eval: finds its tasks by name and runs them. Only this file and ``model`` import it."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gemquant.core.protocols import Progress
from gemquant.errors import (
    CalibrationError,
    GemquantError,
    RuntimeMissingError,
    UnsupportedError,
    UsageError,
    refuse,
)
from gemquant.measure.tasks.document import Settings
from gemquant.measure.tasks.folder import data_loader, folder_problems, is_local, task_names
from gemquant.models.template_process import RenderingError, shared_renderer

INSTALL = "pip install 'gemquant[tasks]'"
RESAMPLES = 1000
"""Of lm-eval's bootstrap, for the standard errors of metrics that are not means."""

_NAME = re.compile(rb"^(?:task|group|tag): *['\"]?([\w.-]+)", re.MULTILINE)
_HTTP_PACKAGES = {"aiohttp", "httpcore2", "httpx", "httpx2", "requests"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """Tasks that can be run.

    tasks: lm-eval's tasks and groups by requested name; a tag has several. members: names of the
    tasks themselves, by the same. skipped: why each of the other names cannot be run.
    """

    manager: Any
    tasks: Mapping[str, Sequence[Any]]
    members: Mapping[str, Sequence[str]]
    skipped: Mapping[str, str]


def version() -> str:
    """Return lm-eval's version; RuntimeMissingError if it is not installed."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise RuntimeMissingError(
            "lm-eval is not installed; it provides the tasks.", hint=INSTALL
        ) from None


def load(
    names: Sequence[str], folder: Path | None, *, code_allowed: bool, progress: Progress
) -> Loaded:
    """Find tasks by name and read their data sets.

    folder: the user's task files, which win over lm-eval's. UsageError for an unknown name, with
    similar ones; what cannot be downloaded is skipped, with the reason.
    """
    version()
    with contained(code_allowed=code_allowed), ExitStack() as offline:
        import lm_eval.api.metrics  # noqa: F401 - fills the registry
        from lm_eval.api.registry import METRIC_REGISTRY
        from lm_eval.tasks import TaskManager

        names_in_folder: set[str] = set()
        if folder is not None:
            known = METRIC_REGISTRY.__contains__
            refuse(folder_problems(folder, code_allowed=code_allowed, knows_metric=known))
            names_in_folder = task_names(folder)
        progress.start("reading lm-eval's list of tasks", 0)
        all_in_folder = folder is not None and names_in_folder.issuperset(names)
        if folder is not None and all_in_folder and is_local(folder):
            _go_offline(offline)
            if not code_allowed:
                _refuse_connections(offline)
        # lm-eval's list takes seconds; a folder with all the tasks does not need it.
        manager = TaskManager(
            include_path=None if folder is None else str(folder.resolve()),
            include_defaults=not all_in_folder,
        )
        refuse(_unknown(names, manager.all_tasks))
        tasks: dict[str, Sequence[Any]] = {}
        skipped: dict[str, str] = {}
        members: dict[str, Sequence[str]] = {}
        for name in names:
            progress.start(f"reading the data of {name}", 0)
            try:
                content = manager.load([name])
            except (OSError, ImportError) as error:
                skipped[name] = _unreachable(error)
                if isinstance(error, ConnectionError):
                    _go_offline(offline)
            except GemquantError:
                raise
            except Exception as error:  # task files and loaders raise anything
                if not _is_network_error(error):
                    raise CalibrationError(f"the task {name} cannot be read: {error}") from error
                skipped[name] = _unreachable(error)
            else:
                group, loaded = content["groups"].get(name), content["tasks"]
                tasks[name] = [group] if group is not None else list(loaded.values())
                refuse(_repeated(name, list(loaded), members))
                members[name] = list(loaded)
    return Loaded(manager, tasks, members, skipped)


def run(model: Any, loaded: Loaded, settings: Settings) -> Mapping[str, Any]:
    """Let a model answer all loaded tasks; return lm-eval's results with their samples."""
    with contained(code_allowed=settings.task_code):
        from lm_eval import simple_evaluate

        results: Mapping[str, Any] = simple_evaluate(
            model=model,
            tasks=[task for tasks in loaded.tasks.values() for task in tasks],
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            bootstrap_iters=RESAMPLES,
            log_samples=True,
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=settings.chat_template,
            task_manager=loaded.manager,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    return results


@contextmanager
def contained(*, code_allowed: bool = False) -> Iterator[None]:
    """Contain lm-eval: no foreign code, limited templates, no progress bars, no processes.

    Task templates come from authors of data sets and from users: they are rendered in a limited
    process. ``-vv`` shows lm-eval's log.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        import datasets
        import lm_eval.api.task
        import lm_eval.evaluator
        import lm_eval.tasks._yaml_loader
        import lm_eval.utils
        from tqdm.std import tqdm

        if not code_allowed:
            yaml_loader = lm_eval.tasks._yaml_loader  # noqa: SLF001 - there is no public way
            trusted = Path(lm_eval.tasks.__file__).parent
            make_loader = data_loader(yaml_loader._make_loader, trusted)  # noqa: SLF001
            _replace(stack, yaml_loader, "_make_loader", make_loader)
        # The counter asks a server for each data set, local ones included.
        _replace(stack, datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        _replace(stack, lm_eval.utils, "env", _TaskTemplates())
        # The document records neither a commit nor this machine's packages, and finding them out
        # would start other programs.
        _replace(stack, lm_eval.evaluator, "get_git_commit_hash", lambda: None)
        _replace(stack, lm_eval.evaluator, "add_env_info", lambda _results: None)
        _replace(stack, lm_eval.api.task, "tqdm", functools.partial(tqdm, disable=True))
        if "DISABLE_MULTIPROC" not in os.environ:
            os.environ["DISABLE_MULTIPROC"] = "1"
            stack.callback(os.environ.pop, "DISABLE_MULTIPROC")
        if datasets.utils.logging.is_progress_bar_enabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        level = logging.INFO if logger.isEnabledFor(logging.DEBUG) else logging.CRITICAL
        for name in ("lm_eval", "datasets", "huggingface_hub", "evaluate"):
            library = logging.getLogger(name)
            stack.callback(library.setLevel, library.level)
            library.setLevel(level)
        yield


class _TaskTemplates:
    """In place of lm-eval's jinja2 environment: each template is rendered in a limited process."""

    def from_string(self, source: str) -> _TaskTemplate:
        return _TaskTemplate(source)


@dataclass(frozen=True)
class _TaskTemplate:
    source: str

    def render(self, **record: Any) -> str:
        try:
            return shared_renderer("task").render(self.source, record)
        except RenderingError as error:
            start = " ".join(self.source[:80].split())
            raise CalibrationError(f"the task's template '{start}' fails: {error}.") from None


def _replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Give an attribute another value until the stack is closed."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _go_offline(stack: ExitStack) -> None:
    """After a failed connection, use only the cache: each retry takes half a minute."""
    import datasets.config
    import huggingface_hub.constants

    _replace(stack, datasets.config, "HF_HUB_OFFLINE", True)
    _replace(stack, huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def _refuse_connections(stack: ExitStack) -> None:
    """Local data may name addresses too, in a data set's card or inside its files."""

    def refuse_address(*given: Any, **_options: Any) -> None:
        raise UnsupportedError(
            f"the data of a local task asks for {given[-1]}, and no data are fetched.",
            hint="Download the file and name its path, or pass --allow-task-code.",
        )

    _replace(stack, socket, "getaddrinfo", refuse_address)
    _replace(stack, socket.socket, "connect", refuse_address)
    _replace(stack, socket.socket, "connect_ex", refuse_address)


def _repeated(
    name: str, tasks: Sequence[str], members: Mapping[str, Sequence[str]]
) -> list[GemquantError]:
    """Refuse tasks that were requested before, by name or as part of a group."""
    earlier = {each for names in members.values() for each in names}
    repeated = ", ".join(sorted(earlier & set(tasks))[:3])
    message = f"--tasks {name}: {repeated} was named before, alone or in a group."
    return [UsageError(message)] if repeated else []


def misspelt(names: Sequence[str], folder: Path | None) -> Iterator[GemquantError]:
    """Names that lm-eval's task files do not even mention, found in seconds.

    Reading its list properly takes most of a minute.
    """
    spec = importlib.util.find_spec("lm_eval")
    if folder is not None or spec is None or spec.origin is None:
        return
    missing, known = set(names), set[str]()
    for path in (Path(spec.origin).parent / "tasks").rglob("*.yaml"):
        text = path.read_bytes()
        missing -= {name for name in missing if name.encode() in text}
        if not missing:
            return
        known |= {found.decode() for found in _NAME.findall(text)}
    yield from _unknown([name for name in names if name in missing], sorted(known))


def _unknown(names: Sequence[str], known: Sequence[str]) -> Iterator[GemquantError]:
    for name in names:
        if name not in known:
            close = " or ".join(difflib.get_close_matches(name, known, n=3))
            others = "lm-eval ls tasks lists them; --task-folder adds your own."
            yield UsageError(
                f"--tasks {name}: lm-eval has no task of that name.",
                hint=f"Did you mean {close}?" if close else others,
            )


def _is_network_error(error: Exception) -> bool:
    """Whether the exception's package is one that downloads data."""
    package = type(error).__module__.partition(".")[0]
    return package in {"datasets", "huggingface_hub", "fsspec", *_HTTP_PACKAGES}


def _unreachable(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return f"needs a package that is not installed: {message}"
    return f"data set unreachable: {message}"
