"""lm-eval: its tasks by name, and a run of some of them. Only this file and ``model`` import it."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gemquant.core.progress import Progress
from gemquant.errors import (
    CalibrationError,
    GemquantError,
    RuntimeMissingError,
    UsageError,
    refuse,
)
from gemquant.measure.tasks.document import Settings
from gemquant.measure.tasks.folder import folder_problems, task_names
from gemquant.models.template_process import RenderingError, shared_renderer

INSTALL = "pip install 'gemquant[tasks]'"
RESAMPLES = 1000
"""Of lm-eval's own bootstrap, for the standard errors of metrics that are no means."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """Tasks that can be run.

    tasks: lm-eval's tasks and groups, by the name that was asked for; several behind a tag.
    members: names of the tasks themselves, by the same. skipped: why each of the others cannot be
    reached.
    """

    manager: Any
    tasks: Mapping[str, Sequence[Any]]
    members: Mapping[str, Sequence[str]]
    skipped: Mapping[str, str]


def version() -> str:
    """lm-eval's version; RuntimeMissingError where it is not installed."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise RuntimeMissingError(
            "lm-eval is not installed; it holds the tasks.", hint=INSTALL
        ) from None


def load(
    names: Sequence[str], folder: Path | None, *, code_allowed: bool, progress: Progress
) -> Loaded:
    """Find tasks by name and read their data sets.

    folder: task files of the user's own, which win over lm-eval's. UsageError for an unknown name,
    with those it may have meant; what cannot be downloaded is skipped, with the reason.
    """
    version()
    with contained():
        import lm_eval.api.metrics  # noqa: F401 - fills the registry
        from lm_eval.api.registry import METRIC_REGISTRY
        from lm_eval.tasks import TaskManager

        own: set[str] = set()
        if folder is not None:
            refuse(
                folder_problems(
                    folder,
                    code_allowed=code_allowed,
                    knows_metric=lambda name: name in METRIC_REGISTRY,
                )
            )
            own = task_names(folder)
        progress.note("reading lm-eval's list of tasks")
        # Its own list takes seconds, and a folder that names them all does without.
        manager = TaskManager(
            include_path=None if folder is None else str(folder),
            include_defaults=not own.issuperset(names),
        )
        refuse(_unknown(names, manager.all_tasks))
        tasks: dict[str, Sequence[Any]] = {}
        skipped: dict[str, str] = {}
        members: dict[str, Sequence[str]] = {}
        with ExitStack() as offline:
            for name in names:
                progress.note(f"reading the data of {name}")
                try:
                    found = manager.load([name])
                except (OSError, ImportError) as error:
                    skipped[name] = _unreachable(error)
                    if isinstance(error, ConnectionError):
                        offline.enter_context(_offline())
                except GemquantError:
                    raise
                except Exception as error:  # task files and loaders raise anything
                    if not _is_about_reaching(error):
                        raise CalibrationError(
                            f"the task {name} cannot be read: {error}"
                        ) from error
                    skipped[name] = _unreachable(error)
                else:
                    group = found["groups"].get(name)
                    tasks[name] = [group] if group is not None else list(found["tasks"].values())
                    refuse(_twice(name, list(found["tasks"]), members))
                    members[name] = list(found["tasks"])
    return Loaded(manager, tasks, members, skipped)


def run(model: Any, loaded: Loaded, settings: Settings) -> Mapping[str, Any]:
    """Let a model answer all tasks that were loaded: lm-eval's results, samples included."""
    with contained():
        from lm_eval import simple_evaluate

        results: Mapping[str, Any] = simple_evaluate(
            model=model,
            tasks=[each for found in loaded.tasks.values() for each in found],
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
def contained() -> Iterator[None]:
    """Keep lm-eval to what it is asked for.

    Task templates come from data sets' authors and users: they are rendered in a limited process.
    Its bars and remarks stay out of our output (``-vv`` shows the remarks), and it starts no
    processes.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        import datasets
        import lm_eval.api.task
        import lm_eval.evaluator
        import lm_eval.utils
        from tqdm.std import tqdm

        stack.enter_context(_replaced(lm_eval.utils, "env", _TaskTemplates()))
        # Neither a commit nor this machine's packages belong into the document, and both start
        # other programs to find out.
        stack.enter_context(_replaced(lm_eval.evaluator, "get_git_commit_hash", lambda: None))
        stack.enter_context(_replaced(lm_eval.evaluator, "add_env_info", lambda _results: None))
        silent = functools.partial(tqdm, disable=True)
        stack.enter_context(_replaced(lm_eval.api.task, "tqdm", silent))
        stack.enter_context(_variable("DISABLE_MULTIPROC", "1"))
        bars = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        if bars:
            stack.callback(datasets.enable_progress_bars)
        for name in ("lm_eval", "datasets", "huggingface_hub", "evaluate"):
            stack.enter_context(_hushed(logging.getLogger(name)))
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
            raise CalibrationError(f"the task's template {start!r} fails: {error}.") from None


@contextmanager
def _hushed(other: logging.Logger) -> Iterator[None]:
    """Let a foreign logger speak only where ours may debug."""
    before = other.level
    other.setLevel(logging.INFO if logger.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
    try:
        yield
    finally:
        other.setLevel(before)


@contextmanager
def _offline() -> Iterator[None]:
    """Once the Hub was not reached, ask the cache alone: a retry takes half a minute."""
    import datasets.config
    import huggingface_hub.constants

    with (
        _replaced(datasets.config, "HF_HUB_OFFLINE", True),
        _replaced(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute of a module another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _twice(
    name: str, found: Sequence[str], members: Mapping[str, Sequence[str]]
) -> list[GemquantError]:
    """Tasks that were named before, by name or as part of something."""
    before = {each for names in members.values() for each in names}
    twice = ", ".join(sorted(before & set(found))[:3])
    told = f"--tasks {name}: {twice} was named before, alone or in a group."
    return [UsageError(told)] if twice else []


def _unknown(names: Sequence[str], known: Sequence[str]) -> list[GemquantError]:
    problems: list[GemquantError] = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            problems.append(
                UsageError(
                    f"--tasks {name}: lm-eval has no task of that name.",
                    hint=f"Did you mean {' or '.join(close)}?"
                    if close
                    else "lm-eval ls tasks lists them; --task-folder adds your own.",
                )
            )
    return problems


def _is_about_reaching(error: Exception) -> bool:
    """Whether a package's own class says that something could not be fetched."""
    return type(error).__module__.partition(".")[0] in {
        "datasets",
        "huggingface_hub",
        "httpx",
        "httpcore2",
        "httpx2",
        "requests",
        "fsspec",
        "aiohttp",
    }


def _unreachable(error: Exception) -> str:
    said = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return f"needs a package that is not installed: {said}"
    return f"data set unreachable: {said}"
