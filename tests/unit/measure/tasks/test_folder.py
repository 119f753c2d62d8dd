from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.errors import GemquantError, UnsupportedError, UsageError
from gemquant.measure.tasks.folder import folder_problems, is_local, task_names
from tests.helpers.tiny_tasks import write_tiny_tasks


def problems(folder: Path, *, code_allowed: bool = False) -> list[GemquantError]:
    known = {"acc", "exact_match", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    return folder_problems(folder, code_allowed=code_allowed, knows_metric=known.__contains__)


def written(folder: Path, text: str, name: str = "task.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_plain_tasks_have_no_problem_and_their_names_are_read(tmp_path: Path) -> None:
    folder = write_tiny_tasks(tmp_path)
    assert problems(folder) == []
    assert task_names(folder) == {"tiny_choice", "tiny_letters", "tiny_text", "tiny_answer"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: a\nprocess_docs: !function evil.run\n", "!function evil.run"),
        ("task: a\nmetric_list:\n- metric: !function evil.run\n", "!function evil.run"),
        ("group: g\ntask:\n- task: a\n  class: !function evil.Task\n", "!function evil.Task"),
        ("task: a\ndataset_path: pandas\n", "dataset_path pandas"),
        ("task: a\ndataset_path: ./loader.py\n", "dataset_path ./loader.py"),
        ("task: a\ndataset_kwargs: {trust_remote_code: true}\n", "trust_remote_code"),
        ("task: a\nmetric_list: [{metric: bertscore}]\n", "the metric bertscore"),
        ("task: a\nmetric_list: [{metric: acc, hf_evaluate: true}]\n", "the metric acc"),
    ],
)
def test_code_is_refused_unless_allowed(tmp_path: Path, text: str, told: str) -> None:
    (problem,) = problems(written(tmp_path, text))
    assert isinstance(problem, UnsupportedError)
    assert told in problem.message
    assert "--allow-task-code" in str(problem.hint)
    assert problems(tmp_path, code_allowed=True) == []


def test_nothing_is_imported_to_find_out(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n", encoding="utf-8"
    )
    problems(written(tmp_path, "task: a\nprocess_docs: !function evil.run\n"), code_allowed=True)
    assert not (tmp_path / "ran").exists()


def test_python_tags_of_yaml_make_nothing(tmp_path: Path) -> None:
    told = problems(written(tmp_path, "task: !!python/object/apply:os.system [exit]\n"))
    assert "not valid YAML" in told[0].message


def test_code_in_an_included_file_is_found_whatever_its_name(tmp_path: Path) -> None:
    written(tmp_path, "process_docs: !function evil.run\n", "common_template")
    (problem,) = problems(written(tmp_path, "task: a\ninclude: common_template\n"))
    assert problem.message.startswith(f"{tmp_path / 'common_template'}: !function evil.run")


HIDDEN = {
    "plain": "task: a\ndoc_to_text: !function evil.run\n",
    "duplicate key": "task: a\ndoc_to_text: !function evil.run\ndoc_to_text: '{{q}}'\n",
    "merge key": "task: a\n<<: {doc_to_text: !function evil.run}\ndoc_to_text: '{{q}}'\n",
    "anchor": "task: a\nx: &x {y: !function evil.run}\nx: 1\nz: {<<: *x, y: 1}\n",
    "key": "task: a\n? !function evil.run\n: 1\n",
}


@pytest.mark.parametrize("name", sorted(HIDDEN))
def test_code_in_a_key_that_another_replaces_is_refused(tmp_path: Path, name: str) -> None:
    (problem,) = problems(written(tmp_path, HIDDEN[name]))
    assert isinstance(problem, UnsupportedError)
    assert "!function evil.run: would run Python" in problem.message


def test_an_include_lies_beside_the_target_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    written(tmp_path / "sub", "task: a\ninclude: inc.txt\n", "real.txt")
    written(tmp_path / "sub", "process_docs: !function evil.run\n", "inc.txt")
    written(tmp_path, "output_type: multiple_choice\n", "inc.txt")
    (tmp_path / "task.yaml").symlink_to("sub/real.txt")
    (problem,) = problems(tmp_path)
    assert problem.message.startswith(f"{tmp_path / 'sub' / 'inc.txt'}: !function evil.run")


@pytest.mark.parametrize(
    "data",
    [
        *("http://h.example/x.jsonl", "[x.jsonl, 'hf://d/x.jsonl']", "{test: 'zip://a::s3://b'}"),
        *("s3://bucket/x", "file:///etc/passwd", "HTTPS://h.example/x", "{test: [{x: [hf://d]}]}"),
    ],
)
def test_data_from_an_address_is_refused_unless_allowed(tmp_path: Path, data: str) -> None:
    text = f"task: a\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\n"
    (problem,) = problems(written(tmp_path, text))
    assert isinstance(problem, UnsupportedError)
    assert "may not fetch data from an address" in problem.message
    assert problems(tmp_path, code_allowed=True) == []
    assert not is_local(tmp_path)


def test_local_data_are_told_from_data_on_a_hub(tmp_path: Path) -> None:
    folder = write_tiny_tasks(tmp_path)
    assert is_local(folder)
    assert not is_local(written(folder, "task: a\ndataset_path: somebody/questions\n"))


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_from_elsewhere_is_refused_even_where_code_is_allowed(
    tmp_path: Path, linked: bool
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    written(tmp_path, "task: b\n", "other.yaml")
    if linked:
        (folder / "task.yaml").symlink_to(tmp_path / "other.yaml")
    else:
        written(folder, "task: a\ninclude: ../other.yaml\n")
    (problem,) = problems(folder, code_allowed=True)
    assert "outside the task folder" in problem.message


def test_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    written(tmp_path, "task: a\ninclude: b.yaml\n", "a.yaml")
    written(tmp_path, "task: b\ninclude: a.yaml\n", "b.yaml")
    assert problems(tmp_path) == []


def test_every_broken_file_is_told_at_once(tmp_path: Path) -> None:
    written(tmp_path, "- a list\n", "a.yaml")
    written(tmp_path, "task: [\n", "b.yaml")
    written(tmp_path, "task: c\ninclude: missing.yaml\n", "c.yaml")
    told = [problem.message for problem in problems(tmp_path)]
    assert len(told) == 3
    assert "must contain a mapping" in told[0]
    assert "not valid YAML" in told[1]
    assert "missing.yaml: cannot be read: No such file" in told[2]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_folder_without_tasks_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path / name)
    assert isinstance(problem, UsageError)
