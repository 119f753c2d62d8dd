"""A run that is ended in the middle goes on behind its last kept layer, to the same bytes."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from gemquant.convert import prepare, resume
from gemquant.convert.job import JobWriter
from gemquant.convert.resume import ResumePolicy, RunCheckpoint, RunState
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.helpers.tiny_job import contents
from tests.unit.cli.conftest import Run

TEXT = ("--samples", "2", "--seq-len", "32", "--eval-windows", "1", "--eval-slices", "english")
COMMANDS: Mapping[str, Sequence[str]] = {
    "awq": ("awq", "--group-size", "32"),
    "awq-gemm": ("awq", "--group-size", "32", "--exporter", "awq-gemm", "--no-eval"),
    "mlx": ("rtn", "--target", "mps", "--group-size", "32"),
    "nf4": ("nf4",),
    "float16": ("cast", "--dtype", "float16"),
    "gguf": ("gguf", "--type", "Q8_0,Q4_0", "--importance"),
}


class Interrupter:
    """Lets a run keep every layer, and ends it as Ctrl-C does once so many are kept.

    at: None to let it come to its end. quantized: indices of the layers that it did.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.quantized: list[int] = []
        monkeypatch.setattr(prepare, "ResumePolicy", partial(ResumePolicy, every_seconds=0.0))
        monkeypatch.setattr(resume, "SHARE_OF_TIME", math.inf)
        save, quantize = RunCheckpoint.save, JobWriter.quantize

        def saving(kept: RunCheckpoint, state: RunState) -> None:
            save(kept, state)
            if state.layers == self.at:
                raise KeyboardInterrupt

        def quantizing(writer, block):  # type: ignore[no-untyped-def]
            self.quantized.append(block.index)
            return quantize(writer, block)

        monkeypatch.setattr(RunCheckpoint, "save", saving)
        monkeypatch.setattr(JobWriter, "quantize", quantizing)

    def interrupt(self, run: Run, model: str) -> None:
        """Let a run end behind its second of three layers; the next is left alone."""
        self.at = 2
        assert run(*rtn(model)).code == 130
        self.at, self.quantized = None, []


@pytest.fixture
def interrupter(monkeypatch: pytest.MonkeyPatch) -> Interrupter:
    return Interrupter(monkeypatch)


@pytest.fixture
def model(tiny_folders: dict[Kind, Path]) -> str:
    """A tiny Gemma 2 of three layers."""
    return str(tiny_folders["gemma2"])


def rtn(model: str, *more: str) -> list[str]:
    return ["rtn", model, "--group-size", "32", *TEXT, *more, "-o", "out"]


@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize("kind", COMMANDS)
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(
    run: Run, interrupter: Interrupter, tmp_path: Path, kind: str, kept: int
) -> None:
    command, *options = COMMANDS[kind]
    write_tiny_gemma(tmp_path / "model", "gemma2", overrides=LLAMACPP["gemma2"])
    line = [command, "model", *TEXT, *options]
    assert run(*line, "-o", "whole").code == 0
    interrupter.at = kept
    ended = run(*line, "-o", "out")
    assert ended.code == 130, ended.err
    assert f"interrupted; layers 1 to {kept} are saved (" in ended.err
    interrupter.at, interrupter.quantized = None, []
    done = run(*line, "-o", "out")
    assert done.code == 0, done.err
    assert f"resuming after layer {kept}" in done.err
    assert set(interrupter.quantized) == set(range(kept, 3))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "whole"]


KILLED = """
import math, os, signal
from functools import partial
from gemquant import __main__
from gemquant.convert import prepare, resume
from gemquant.convert.job import JobWriter
prepare.ResumePolicy = partial(resume.ResumePolicy, every_seconds=0.0)
resume.SHARE_OF_TIME = math.inf
quantize = JobWriter.quantize
def quantizing(writer, block):
    stored = quantize(writer, block)
    if block.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return stored
JobWriter.quantize = quantizing
__main__.main(COMMAND)
"""


def test_a_run_that_was_killed_goes_on_and_writes_the_same_bytes(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    whole = run(*rtn(model)[:-1], "whole")
    assert whole.code == 0, whole.err
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.replace("COMMAND", repr(rtn(model)))],
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert killed.returncode == -signal.SIGKILL
    interrupter.quantized = []
    done = run(*rtn(model))
    assert done.code == 0, done.err
    assert interrupter.quantized == [2]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED_IN_A_TOWER = """
import os, signal
from gemquant import __main__
from gemquant.formats.checkpoint.towers import Towers
read, left = Towers.tensor, [5]
def reading(towers, name):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(towers, name)
Towers.tensor = reading
__main__.main(COMMAND)
"""


@pytest.mark.parametrize("options", [(), ("--target", "mps")], ids=["compressed-tensors", "mlx"])
def test_towers_have_the_same_bytes_after_a_run_that_was_killed_and_one_that_was_interrupted(
    run: Run, interrupter: Interrupter, tmp_path: Path, options: tuple[str, ...]
) -> None:
    write_tiny_gemma(tmp_path / "model", "gemma4_e")
    line = ["rtn", "model", "--group-size", "32", *TEXT, *options]
    assert run(*line, "-o", "whole").code == 0
    again = [*line, "-o", "out"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_TOWER.replace("COMMAND", repr(again))],
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert killed.returncode == -signal.SIGKILL
    interrupter.at = 1
    assert run(*again).code == 130
    interrupter.at, interrupter.quantized = None, []
    done = run(*again)
    assert done.code == 0, done.err
    assert "resuming after layer 1" in done.err
    assert 0 not in interrupter.quantized
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED_BETWEEN_NAMES = """
import os, signal
from pathlib import Path
from gemquant import __main__
rename, left = Path.rename, [RENAMES]
def renaming(self, target):
    if self.name.endswith(".partial"):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
    return rename(self, target)
Path.rename = renaming
__main__.main(COMMAND)
"""


@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_was_killed_between_two_of_its_folders_goes_on(
    run: Run, interrupter: Interrupter, tmp_path: Path, renames: int, force: bool
) -> None:
    write_tiny_gemma(tmp_path / "model", "gemma2", overrides=LLAMACPP["gemma2"])
    line = ["gguf", "model", "--type", "Q8_0,Q4_0", *TEXT]
    assert run(*line, "-o", "whole").code == 0
    again = [*line, "-o", "out"]
    if force:
        assert run(*again, "--seed", "1").code == 0
        again.append("--force")
    script = KILLED_BETWEEN_NAMES.replace("RENAMES", str(renames))
    killed = subprocess.run(
        [sys.executable, "-c", script.replace("COMMAND", repr(again))],
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert killed.returncode == -signal.SIGKILL
    interrupter.quantized = []
    done = run(*again)
    assert done.code == 0, done.err
    assert "the interrupted run was complete" in done.err
    assert interrupter.quantized == []
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Q4_0", "Q8_0"]


def test_restart_does_not_take_up_a_complete_run(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gemquant.core.artifact.staging.put_in_place", interrupted)
        assert run(*rtn(model)).code == 130
    interrupter.quantized = []
    assert run(*rtn(model, "--restart")).code == 0
    assert interrupter.quantized == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_killed_run_of_other_settings_left_without_a_state_is_removed(
    run: Run, model: str, tmp_path: Path
) -> None:
    for name in (".out.0123abcd.partial", ".out.0123abcd.unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.0123abcd.unfinished" / "lock").touch()
    assert run(*rtn(model)).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_users_do_not_share_the_names_of_scratch_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ResumePolicy("identity")
    before = policy.token
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert policy.token != before


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_a_source_that_is_truncated_in_the_middle_ends_the_run_which_goes_on_when_it_is_whole_again(
    run: Run, interrupter: Interrupter, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny_gemma(tmp_path / "model", "gemma2", overrides=LLAMACPP["gemma2"])
    model, file = str(source), source / "model.safetensors"
    if form == "gguf":
        file = tmp_path / "model.gguf"
        assert run("gguf", model, "--type", "F16", *TEXT, "-o", "made").code == 0
        next((tmp_path / "made").glob("*.gguf")).rename(file)
        model = str(file)
    assert run(*rtn(model)[:-1], "whole").code == 0
    content, times = file.read_bytes(), file.stat()
    quantize = JobWriter.quantize

    def truncating(writer, block):  # type: ignore[no-untyped-def]
        if block.index == 2:
            os.truncate(file, 4096)
        return quantize(writer, block)

    with monkeypatch.context() as patch:
        patch.setattr(JobWriter, "quantize", truncating)
        ended = run(*rtn(model))
    assert ended.code == 3
    assert f"error: {file}: was {len(content)} bytes long when it was opened" in ended.err
    assert "layers 1 to 2 are saved" in ended.err
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    interrupter.quantized = []
    assert run(*rtn(model)).code == 0
    assert interrupter.quantized == [2]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_restart_forgets_the_interrupted_run(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    interrupter.interrupt(run, model)
    assert run(*rtn(model, "--restart")).code == 0
    assert interrupter.quantized == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dry_run_says_how_far_it_has_come_and_changes_nothing(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    interrupter.interrupt(run, model)
    before = contents(tmp_path)
    told = run(*rtn(model, "--dry-run"))
    assert "an interrupted run will be resumed after layer 2" in told.err
    assert "the windows carry at most " in told.err
    assert contents(tmp_path) == before


def test_other_settings_start_again_and_tell_of_what_is_left(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    interrupter.interrupt(run, model)
    (left,) = tmp_path.glob(".out.*.partial")
    done = run(*rtn(model, "--seed", "1"))
    assert (done.code, interrupter.quantized) == (0, [0, 1, 2])
    assert f"{left.name} and {left.stem}.unfinished next to it" in re.sub(r"\s+", " ", done.err)
    assert left.is_dir()


def test_what_another_run_is_still_writing_is_not_called_left_over(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    interrupter.interrupt(run, model)
    (folder,) = tmp_path.glob(".out.*.unfinished")
    with FileLock(folder / "lock"):
        done = run(*rtn(model, "--seed", "1"))
    assert done.code == 0
    assert "remove them" not in done.err


def test_a_changed_checkpoint_starts_again(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in Path(model).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    interrupter.interrupt(run, str(copy))
    for path in copy.glob("*.safetensors"):
        os.utime(path, (1, 1))
    assert run(*rtn(str(copy))).code == 0
    assert interrupter.quantized == [0, 1, 2]


def test_a_changed_configuration_starts_again(
    run: Run, interrupter: Interrupter, tmp_path: Path
) -> None:
    copy = write_tiny_gemma(tmp_path / "model", "gemma2")
    interrupter.interrupt(run, str(copy))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert run(*rtn(str(copy))).code == 0
    assert interrupter.quantized == [0, 1, 2]


def test_files_that_were_changed_in_between_are_refused(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    interrupter.interrupt(run, model)
    (weights,) = tmp_path.glob(".out.*.partial/model.safetensors")
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    refused = run(*rtn(model))
    assert refused.code == 7
    assert "model.safetensors is not the file that the interrupted run was writing" in refused.err
    assert "hint: Start over with --restart." in refused.err


def test_a_damaged_state_starts_again(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    interrupter.interrupt(run, model)
    (state,) = tmp_path.glob(".out.*.unfinished/state.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    assert run(*rtn(model)).code == 0
    assert interrupter.quantized == [0, 1, 2]


def test_two_runs_of_the_same_do_not_write_over_each_other(
    run: Run, interrupter: Interrupter, model: str, tmp_path: Path
) -> None:
    interrupter.interrupt(run, model)
    before = contents(tmp_path)
    (folder,) = tmp_path.glob(".out.*.unfinished")
    with FileLock(folder / "lock"):
        refused = run(*rtn(model))
    assert refused.code == 7
    assert "out: another run is making it at this moment." in refused.err
    assert contents(tmp_path) == before


def test_an_error_of_the_input_keeps_nothing(
    run: Run,
    interrupter: Interrupter,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gemquant.errors import UnsupportedError

    def refusing(writer, block):  # type: ignore[no-untyped-def]
        if block.index == 2:
            raise UnsupportedError("layer 2 cannot be stored.")
        return quantize(writer, block)

    quantize = JobWriter.quantize
    monkeypatch.setattr(JobWriter, "quantize", refusing)
    assert run(*rtn(model)).code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_was_full_keeps_what_is_done(
    run: Run, interrupter: Interrupter, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as filling:
        # The files have their size from the start: what can fail is to flush them at the end.
        norm = JobWriter.write_outer_norms

        def writing(writer: JobWriter) -> None:
            norm(writer)
            filling.setattr(os, "fsync", full)

        filling.setattr(JobWriter, "write_outer_norms", writing)
        failed = run(*rtn(model))
    assert failed.code == 7
    assert "No space left on device" in failed.err
    assert "note: layers 1 to 3 are saved (" in failed.err
    interrupter.quantized = []
    done = run(*rtn(model))
    assert (done.code, interrupter.quantized) == (0, [])


def test_a_short_run_keeps_no_state(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunCheckpoint, "save", lambda *_: pytest.fail("a state was written"))
    assert run(*rtn(model)).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
