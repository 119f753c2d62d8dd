"""``gemquant run --engine ray``: each group of jobs is a task of a Ray cluster.

A task does what a run on one machine does with the same jobs, in a process on some node. It writes
into a folder that every node sees: a task that is tried again, after its node was lost, finds there
what stands already and what can be resumed. Source: docs.ray.io, "Ray Core", version 2.60.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from gemquant.convert.run import JobGroup, PlannedRun, RunRequest, plan_run
from gemquant.core.artifact import Artifact
from gemquant.core.artifact.staging import make_parents
from gemquant.core.protocols import Progress
from gemquant.core.resources import human_bytes
from gemquant.errors import (
    BusyError,
    GemquantError,
    OutputError,
    ProblemCollector,
    RuntimeMissingError,
    UsageError,
    WorkerError,
)

SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_TO_STOP = 20.0
SECONDS_TO_ANSWER = 10.0
SECONDS_FOR_A_LOST_TASK = 300.0
"""How long a task tried again waits for the lock of one whose node was lost."""

Outcome = Sequence[str | GemquantError]
Report = tuple[str, str, tuple[Any, ...]]
"""Which group, a method of Progress, its arguments."""


@dataclass(frozen=True)
class Cluster:
    """Where tasks run.

    address: ``host:port`` of the head node, ``ray://…`` or ``auto``; None: what RAY_ADDRESS names,
        else this machine alone. retries: how often a task whose node was lost is tried again.
    """

    address: str | None = None
    retries: int = 3


def run_on(
    cluster: Cluster, request: RunRequest, planned: PlannedRun, progress: Progress
) -> list[Artifact]:
    """Make what does not stand yet; a group that fails stops no other.

    UsageError for a cluster that cannot be reached, or whose nodes lack the processors or the
    memory of a group; at the end, all errors of all groups.
    """
    finished = [
        artifact for each in planned.passes if not each.planned for artifact in each.finished
    ]
    request.copied(finished, progress)
    if not planned.groups:
        return finished
    make_parents(request.folder)
    request.folder.mkdir(exist_ok=True)
    with (
        _connected(cluster) as ray,
        # A task that does not see this folder runs where the artifacts would be lost.
        TemporaryDirectory(dir=request.folder, prefix=".run.") as mark,
    ):
        needs = [(group, _needs(group, request)) for group in planned.groups]
        _refuse_what_fits_no_node(ray, needs)
        inbox = _inbox(ray)
        task = ray.remote(_make)
        running = {
            task.options(
                **_as_options(need), max_retries=cluster.retries, name=f"gemquant {group.title}"
            ).remote(
                replace(request, jobs=group.jobs), group.title, str(Path.cwd()), mark, inbox
            ): group
            for group, need in needs
        }
        progress.note(f"{len(running)} tasks on {len(_nodes(ray))} nodes")
        made, problems = _gather(ray, running, inbox, progress)
    problems.refuse()
    return [*finished, *map(Artifact.open, map(Path, made))]


def _gather(
    ray: Any, running: dict[Any, JobGroup], inbox: Any, progress: Progress
) -> tuple[list[str], ProblemCollector]:
    """Paths of what the tasks make, and their errors, while passing on what they report."""
    made: list[str] = []
    problems = ProblemCollector()
    progress.start("tasks", len(running))
    try:
        while running:
            ready, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_REPORTS)
            for title, method, values in ray.get(inbox.take.remote()):
                _say(progress, title, method, values)
            for each in ready:
                group = running.pop(each)
                try:
                    outcome: Outcome = ray.get(each)
                except ray.exceptions.RayTaskError:
                    raise  # a defect of ours
                except ray.exceptions.RayError as error:
                    outcome = (
                        WorkerError(
                            f"its node was lost too often ({type(error).__name__}).",
                            hint="What was saved is resumed when the same command runs again.",
                        ),
                    )
                for part in outcome:
                    if isinstance(part, str):
                        made.append(part)
                    else:
                        part.add_note(f"in {group.title}")
                        problems.append(part)
                progress.advance("tasks")
    finally:
        for each in running:
            with suppress(ray.exceptions.RayError):
                ray.cancel(each)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=SECONDS_TO_STOP)
    return made, problems


def _say(progress: Progress, title: str, method: str, values: tuple[Any, ...]) -> None:
    words, *count = values
    getattr(progress, method)(f"{title}: {words}", *count)


# ---------------------------------------------------------------- on a node


def _make(request: RunRequest, title: str, folder: str, mark: str, inbox: Any) -> Outcome:
    """Make a group's artifacts; paths of them, or the problems. folder: where the command ran."""
    progress = _Sent(title, inbox)
    try:
        os.chdir(folder)
        visible = Path(mark).resolve().is_dir()
    except OSError:
        visible = False
    if not visible:
        node = socket.gethostname()
        return (
            OutputError(
                f"{request.folder}: node {node} does not see this folder of {folder}.",
                hint="Run from, and into, storage that all nodes mount at the same path.",
            ),
        )
    deadline = time.monotonic() + SECONDS_FOR_A_LOST_TASK
    while True:
        try:
            made = plan_run(request, progress).run(progress)
            return [str(each.path) for each in request.copied(made, progress)]
        except BusyError as error:  # a lost node's process may live a little longer
            if time.monotonic() > deadline:
                return error.parts
            time.sleep(SECONDS_BETWEEN_REPORTS)
        except GemquantError as error:
            return error.parts


class _Sent:
    """Progress that goes to the machine where the command runs."""

    def __init__(self, title: str, inbox: Any) -> None:
        self._title, self._inbox = title, inbox

    def start(self, task: str, total: int) -> None:
        """Send it."""
        self._inbox.put.remote((self._title, "start", (task, total)))

    def advance(self, task: str, amount: int = 1) -> None:
        """Send it."""
        self._inbox.put.remote((self._title, "advance", (task, amount)))

    def note(self, text: str) -> None:
        """Send it."""
        self._inbox.put.remote((self._title, "note", (text,)))


class _Inbox:
    """What the tasks report, until it is asked for."""

    def __init__(self) -> None:
        self._reports: list[Report] = []

    def put(self, report: Report) -> None:
        """Keep one."""
        self._reports.append(report)

    def take(self) -> list[Report]:
        """All since the last call."""
        taken, self._reports = self._reports, []
        return taken


# ---------------------------------------------------------------- the cluster


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # Ray puts its own handler in the place of ours.
    handler = signal.getsignal(signal.SIGTERM)
    alone = cluster.address is None and "RAY_ADDRESS" not in os.environ
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if alone else {}
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    try:
        _require_answer(address)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster answers ({error}).",
            hint="Start one with: ray start --head; then --address HOST:6379",
        ) from None
    signal.signal(signal.SIGTERM, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str | None) -> None:
    """OSError or ValueError where nothing listens; Ray would try for minutes."""
    if address in (None, "auto", "local"):
        return
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if not place.hostname or not place.port:
        raise ValueError("it is written HOST:PORT")
    socket.create_connection((place.hostname, place.port), SECONDS_TO_ANSWER).close()


def check_installed() -> None:
    """RuntimeMissingError without Ray."""
    if find_spec("ray") is None:
        raise RuntimeMissingError(
            "--engine ray: Ray is not installed.", hint="pip install 'gemquant[ray]'"
        )


def _inbox(ray: Any) -> Any:
    """The inbox, on the node that the command runs on: the others may be lost."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Inbox).options(num_cpus=0, scheduling_strategy=here).remote()


Needs = Mapping[str, float]
"""Of Ray's resources CPU, GPU and memory (bytes), how much one task takes."""


def _needs(group: JobGroup, request: RunRequest) -> Needs:
    gpus = any(job.recipe.device.startswith("cuda") for job in group.jobs)
    return {"CPU": request.threads, "GPU": int(gpus), "memory": group.memory_bytes}


def _as_options(need: Needs) -> dict[str, float]:
    return {"num_cpus": need["CPU"], "num_gpus": need["GPU"], "memory": need["memory"]}


def _nodes(ray: Any) -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _refuse_what_fits_no_node(ray: Any, needs: Sequence[tuple[JobGroup, Needs]]) -> None:
    """Ray would wait for such a node forever."""
    nodes, problems = _nodes(ray), ProblemCollector()
    words: dict[str, Callable[[float], str]] = {
        "CPU": lambda count: f"{count:g} processors (--threads)",
        "GPU": lambda count: f"{count:g} GPU",
        "memory": lambda size: f"{human_bytes(round(size))} of memory (--memory)",
    }
    for group, need in needs:
        if not any(_fits(need, node) for node in nodes):
            most = {name: max((n.get(name, 0) for n in nodes), default=0) for name in need}
            asked, offered = (
                ", ".join(words[name](each[name]) for name in need if need[name])
                for each in (need, most)
            )
            problems.append(
                UsageError(
                    f"{group.title}: takes {asked} of one node; none of them offers it.",
                    hint=f"The most that a node has: {offered}.",
                )
            )
    problems.refuse()


def _fits(need: Needs, node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in need.items())
