"""``gemquant tasks`` as a user runs it, offline, on tiny Gemmas and local data."""

from __future__ import annotations

import importlib.util
import json
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemquant.measure.tasks import harness
from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_tasks import write_tiny_tasks
from tests.unit.cli.conftest import Run, code_blocks

needs_lm_eval = [
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"
    ),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def gemma(tiny_folders: dict[Kind, Path]) -> str:
    return str(tiny_folders["gemma3_text"])


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    return str(write_tiny_tasks(tmp_path / "own"))


def test_without_lm_eval_the_extra_is_named(
    run: Run, gemma: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(harness.metadata, "version", absent)
    result = run("tasks", gemma, "--no-original")
    assert result.code == 8
    assert "pip install 'gemquant[tasks]'" in result.err


def test_everything_wrong_with_the_options_is_told_at_once(run: Run) -> None:
    result = run(
        *(
            "tasks",
            "a",
            "--limit",
            "0",
            "--tasks",
            ",",
            "--device",
            "tpu",
            "--compute-dtype",
            "int8",
        ),
        *("--against", "b", "--no-original", "--allow-task-code", "--output", "."),
    )
    assert result.code == 2
    assert "7 problems" in result.err
    for told in (
        "--limit 0",
        "--device tpu",
        "--compute-dtype int8",
        "names no task",
        "exclude each other",
    ):
        assert told in result.err


class TestWithLmEval:
    pytestmark = needs_lm_eval

    def test_an_artifact_and_its_original_answer_the_same_samples(
        self, run: Run, gemma: str, tasks: str, tmp_path: Path
    ) -> None:
        output = tmp_path / "tasks.json"
        result = run(
            *("tasks", gemma, "--against", gemma, "--task-folder", tasks, "--json", "-q"),
            *("--tasks", "tiny_choice,tiny_text", "--limit", "5", "--output", str(output)),
        )
        assert result.code == 0, result.err
        document: dict[str, Any] = json.loads(result.out)
        assert document == json.loads(output.read_text(encoding="utf-8"))
        choice, text = document["tasks"]
        assert (choice["task"], choice["samples"], choice["samples_in_all"]) == (
            "tiny_choice",
            5,
            8,
        )
        assert [metric["metric"] for metric in text["metrics"]] == [
            "word_perplexity",
            "byte_perplexity",
            "bits_per_byte",
        ]
        for metric in (*choice["metrics"], *text["metrics"]):
            assert metric["artifact"] == metric["original"]
            assert metric["drop"] == {
                "value": 0.0,
                "low": 0.0,
                "high": 0.0,
                "samples": 5,
                "no_interval": None,
            }

    def test_only_an_earlier_document_is_replaced(
        self, run: Run, gemma: str, tasks: str, tmp_path: Path
    ) -> None:
        output = tmp_path / "tasks.json"
        command = ("tasks", gemma, "--no-original", "--task-folder", tasks, "-q", "-o", str(output))
        for _ in range(2):
            assert run(*command, "--tasks", "tiny_letters").code == 0
        output.write_text("notes", encoding="utf-8")
        refused = run(*command, "--tasks", "tiny_letters")
        assert refused.code == 7
        assert "is not an earlier tasks document: only those are replaced" in refused.err
        assert output.read_text(encoding="utf-8") == "notes"

    def test_the_table_says_what_was_run(self, run: Run, gemma: str, tasks: str) -> None:
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "-q"),
            *("--tasks", "tiny_answer"),
        )
        assert result.code == 0, result.err
        assert "tiny_answer" in result.out
        assert "0-shot, 4" in result.out
        assert "exact_match" in result.out

    def test_an_unknown_task_is_a_usage_error_with_suggestions(
        self, run: Run, gemma: str, tasks: str
    ) -> None:
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks),
            *("--tasks", "helaswag,tiny_choise"),
        )
        assert result.code == 2
        assert "Did you mean hellaswag" in result.err
        assert "Did you mean tiny_choice" in result.err

    def test_a_misspelt_task_is_answered_before_anything_is_loaded(
        self, run: Run, gemma: str
    ) -> None:
        result = run("tasks", "nowhere", "--tasks", "hellaswag,helaswag")
        assert result.code == 2
        assert "--tasks helaswag: lm-eval has no task of that name." in result.err
        assert "Did you mean hellaswag" in result.err

    def test_data_that_is_not_there_is_skipped_with_the_reason_and_no_score(
        self, run: Run, gemma: str, tasks: str
    ) -> None:
        Path(tasks, "tiny_text.jsonl").unlink()
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "--json", "-q"),
            *("--tasks", "tiny_text,tiny_letters"),
        )
        assert result.code == 0, result.err
        text, letters = json.loads(result.out)["tasks"]
        assert "unreachable" in text["skipped"]
        assert text["metrics"] == []
        assert letters["metrics"]

    def test_where_all_are_skipped_the_exit_code_says_so(
        self, run: Run, gemma: str, tasks: str
    ) -> None:
        Path(tasks, "tiny_text.jsonl").unlink()
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "--tasks", "tiny_text")
        )
        assert result.code == 5
        assert "skipped: tiny_text" in result.out
        assert "No task could be run" in result.err

    def test_task_code_does_not_run(self, run: Run, gemma: str, tmp_path: Path, tasks: str) -> None:
        ran = tmp_path / "ran"
        Path(tasks, "evil.py").write_text(f"open({str(ran)!r}, 'w')\nf = len\n", encoding="utf-8")
        with Path(tasks, "tiny_choice.yaml").open("a", encoding="utf-8") as file:
            file.write("process_docs: !function evil.f\n")
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "--tasks", "tiny_letters")
        )
        assert result.code == 4
        assert "!function evil.f" in result.err
        assert "--allow-task-code" in result.err
        assert not ran.exists()

    @pytest.mark.parametrize("checked", [True, False])
    @pytest.mark.parametrize("way", ["plain", "duplicate key", "merge key", "linked include"])
    def test_hidden_task_code_does_not_run(
        self,
        run: Run,
        gemma: str,
        tmp_path: Path,
        tasks: str,
        monkeypatch: pytest.MonkeyPatch,
        way: str,
        checked: bool,
    ) -> None:
        """Without the check, lm-eval's loader refuses."""
        if not checked:
            monkeypatch.setattr(harness, "folder_problems", lambda *_args, **_kwargs: [])
        ran, file = tmp_path / "ran", Path(tasks, "tiny_choice.yaml")
        text = file.read_text(encoding="utf-8")
        code = "doc_to_text: !function evil.f"
        evil = f"open({str(ran)!r}, 'w')\nf = len\n"
        Path(tasks, "evil.py").write_text(evil, encoding="utf-8")
        if way == "linked include":
            Path(tasks, "sub").mkdir()
            Path(tasks, "sub", "evil.py").write_text(evil, encoding="utf-8")
            Path(tasks, "sub", "inc.txt").write_text(f"{code}\n", encoding="utf-8")
            Path(tasks, "inc.txt").write_text("metadata: {}\n", encoding="utf-8")
            file.rename(Path(tasks, "sub", "real.txt"))
            with Path(tasks, "sub", "real.txt").open("a", encoding="utf-8") as opened:
                opened.write("include: inc.txt\n")
            file.symlink_to("sub/real.txt")
        elif way == "merge key":
            file.write_text(f"<<: {{{code}}}\n{text}", encoding="utf-8")
        else:
            text = text if way == "duplicate key" else text.replace("doc_to_text", "description")
            file.write_text(f"{code}\n{text}", encoding="utf-8")
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "--tasks", "tiny_choice"),
            *("--limit", "2"),
        )
        assert not ran.exists()
        if checked:
            assert result.code == 4
            assert "!function evil.f" in result.err
        else:
            assert result.code != 0

    def test_local_tasks_ask_no_server(
        self, run: Run, gemma: str, tasks: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[object] = []

        def refuse(host: object, *_args: object, **_kwargs: object) -> None:
            asked.append(host)
            raise OSError

        monkeypatch.setattr("socket.getaddrinfo", refuse)
        monkeypatch.setattr("socket.create_connection", refuse)
        command = ("tasks", gemma, "--no-original", "--task-folder", tasks, "--tasks")
        assert run(*command, "tiny_choice", "--limit", "2").code == 0
        file = Path(tasks, "tiny_choice.yaml")
        text = file.read_text(encoding="utf-8")
        local = str(Path(tasks, "tiny_choice.jsonl"))
        file.write_text(text.replace(local, "http://127.0.0.1:9/x.jsonl"), encoding="utf-8")
        result = run(*command, "tiny_choice", "--limit", "2")
        assert result.code == 4
        assert "http://127.0.0.1:9/x.jsonl: a task file may not fetch data" in result.err
        assert asked == []

    def test_a_local_data_set_whose_card_names_an_address_is_not_fetched(
        self, run: Run, gemma: str, tasks: str
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.1)
            url = f"http://127.0.0.1:{server.getsockname()[1]}/x.jsonl"
            data = Path(tasks, "data")
            data.mkdir()
            card = f"---\nconfigs:\n- config_name: default\n  data_files: {url}\n---\n"
            (data / "README.md").write_text(card, encoding="utf-8")
            file = Path(tasks, "tiny_choice.yaml")
            task = yaml.safe_load(file.read_text(encoding="utf-8"))
            task = {**task, "dataset_path": str(data), "dataset_kwargs": {}}
            file.write_text(yaml.safe_dump(task), encoding="utf-8")
            command = ("tasks", gemma, "--no-original", "--task-folder", tasks, "--tasks")
            assert run(*command, "tiny_choice", "--limit", "2").code not in {0, 70}
            with pytest.raises(TimeoutError):
                server.accept()

    def test_task_templates_are_sandboxed(self, run: Run, gemma: str, tasks: str) -> None:
        file = Path(tasks, "tiny_choice.yaml")
        text = file.read_text(encoding="utf-8")
        escape = "'{{ question.__class__.__mro__[1].__subclasses__() }}'"
        file.write_text(text.replace("'{{question}}'", escape), encoding="utf-8")
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "--tasks", "tiny_choice")
        )
        assert result.code != 0
        assert "unsafe" in result.err

    @pytest.mark.parametrize("template", ["'a'|center(3000000000)", "9**999999999"])
    def test_task_templates_are_limited(
        self, run: Run, gemma: str, tasks: str, template: str
    ) -> None:
        file = Path(tasks, "tiny_choice.yaml")
        text = file.read_text(encoding="utf-8")
        hostile = f'"{{{{ ({template}) | length }}}}"'
        file.write_text(text.replace("'{{question}}'", hostile), encoding="utf-8")
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "--tasks", "tiny_choice")
        )
        assert result.code == 5
        assert "the task's template " in result.err
        assert f"{{{{ ({template}) | length }}}}" in result.err
        assert " fails: it " in result.err

    def test_a_task_in_a_chat_template(self, run: Run, gemma: str, tasks: str) -> None:
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", tasks, "--json", "-q"),
            *("--tasks", "tiny_letters", "--apply-chat-template"),
        )
        assert result.code == 0, result.err
        assert json.loads(result.out)["settings"]["chat_template"] is True

    def test_the_documented_task_runs(self, run: Run, gemma: str, tmp_path: Path) -> None:
        (task,), (line,) = code_blocks("tasks.md", "yaml"), code_blocks("tasks.md", "json")
        folder = tmp_path / "my-tasks"
        folder.mkdir()
        (folder / "capitals.yaml").write_text(task, encoding="utf-8")
        (folder / "capitals.jsonl").write_text(line, encoding="utf-8")
        result = run(
            *("tasks", gemma, "--no-original", "--task-folder", str(folder), "--json", "-q"),
            *("--tasks", "capitals"),
        )
        assert result.code == 0, result.err
        (found,) = json.loads(result.out)["tasks"]
        assert found["samples"] == 2
