"""What is planned, and what becomes of a process that fails."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from gemquant.core.protocols import Silence
from gemquant.errors import RuntimeMissingError, UsageError
from gemquant.measure.bench import measure
from gemquant.measure.bench.document import Settings
from gemquant.measure.bench.measure import Measurement, plan, prompt_of
from gemquant.measure.bench.subject import Subject
from gemquant.runtimes import llamacpp_library
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_gguf import write_tiny_gguf

SETTINGS = Settings(
    prompt_tokens=12,
    new_tokens=4,
    repetitions=1,
    warm_up_runs=0,
    threads=1,
    device="cpu",
    dtype="auto",
)


@pytest.fixture
def folder(tiny_folders: dict[Kind, Path]) -> Subject:
    return Subject.open(str(tiny_folders["gemma3_text"]))


def test_modes_that_were_named_are_all_that_is_planned(folder: Subject) -> None:
    found = plan([folder], device="cpu", modes=["static", "compiled"])
    assert [(each.mode, each.not_run is None) for each in found] == [
        ("static", True),
        ("compiled", False),
    ]


@pytest.mark.parametrize(
    ("flag", "named", "said"),
    [
        ("modes", ["sdpaa"], "--modes sdpaa: must be one of eager"),
        ("runtimes", ["exllama"], "--runtimes exllama"),
    ],
)
def test_a_name_that_is_none_is_refused(
    folder: Subject, flag: str, named: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        plan([folder], device="cpu", **{flag: named})  # type: ignore[arg-type]


def test_where_nothing_can_run_the_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp_library, "PACKAGE", "no-such-package")
    subject = Subject.open(str(write_tiny_gguf(tmp_path / "model.gguf")))
    with pytest.raises(RuntimeMissingError, match=r"llama\.cpp: no-such-package not installed"):
        plan([subject], device="cpu")
    with pytest.raises(RuntimeMissingError, match=r"llama\.cpp: no-such-package not installed"):
        plan([subject], device="cpu", modes=["default"])


def test_a_prompt_has_its_length_and_one_bos(folder: Subject) -> None:
    prompt = prompt_of(folder, 50)
    assert (len(prompt), prompt[0], prompt.count(2)) == (50, 2, 1)


@pytest.mark.skipif(llamacpp_library.missing() is not None, reason="llama.cpp is not installed")
def test_a_runtimes_refusal_becomes_the_rows_reason(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf")
    subject = Subject.open(str(path))
    prompt = prompt_of(subject, 12)
    path.write_bytes(path.read_bytes()[:-4096])
    answer = measure.measure(Measurement(subject, "llama.cpp", "default"), SETTINGS, prompt)
    assert answer.figures is None
    assert "llama.cpp refuses" in str(answer.failed)
    assert "corrupted or incomplete" in str(answer.failed)


def test_a_process_that_is_killed_leaves_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure._answer(-signal.SIGKILL, b"", "last words\n")
    assert found.failed == "the measuring process ended by SIGKILL: last words"


def test_no_process_outlives_an_interruption(
    folder: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(self: subprocess.Popen[bytes], *_: object) -> None:
        started.append(self)
        assert self.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure.measure(Measurement(folder, "transformers", "eager"), SETTINGS, [2, 5])
    (process,) = started
    assert process.returncode == -signal.SIGKILL
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        assert pipe.closed


def test_a_prompt_longer_than_the_text_is_refused(folder: Subject) -> None:
    with pytest.raises(UsageError, match="--prompt-tokens 9000000: slice english"):
        prompt_of(folder, 9_000_000)


def test_an_unfinished_answer_is_none() -> None:
    assert "answered b'{'" in str(measure._answer(0, b"{", "").failed)


@pytest.mark.skipif(llamacpp_library.missing() is not None, reason="llama.cpp is not installed")
def test_rows_hold_what_a_process_of_its_own_measured(tmp_path: Path) -> None:
    subject = Subject.open(str(write_tiny_gguf(tmp_path / "model.gguf", "gemma")))
    made = measure.run(plan([subject], device="cpu"), SETTINGS, Silence())
    (row,) = made.rows
    assert (row.runtime, row.mode, row.not_run) == ("llama.cpp", "default", None)
    assert row.size_bytes == subject.path.stat().st_size
    figures = row.figures
    assert figures is not None
    assert len(figures.greedy_tokens) == 4
    assert figures.repeatable
    assert figures.warm_up is None
    assert len(figures.measured.decode_tokens_per_second.values) == 1
    if Path("/proc/self/status").exists():
        assert figures.peak_anonymous_bytes is not None
        assert figures.peak_resident_bytes is not None
        # Neither torch nor anything else of ours that is large is in that process.
        assert 1e6 < figures.peak_anonymous_bytes < 150e6
    assert made.environment.libraries["xllamacpp"] == llamacpp_library.VERSION
