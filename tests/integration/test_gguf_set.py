"""Several GGUF files of one model as one thing: shown, verified, pushed, added to, fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData, constants

from gemquant.__main__ import main
from tests.helpers.hub_stand_in import TOKEN, StandIn, hub_stand_in
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.helpers.tiny_gguf import LLAMACPP
from tests.unit.cli.conftest import Run

REPOSITORY = "me/tiny-GGUF"
FEW = "--threads 1 --eval-windows 1 --seq-len 24 --eval-slices english,code -q".split()
CARD, PICTURE = "README.md", "size-and-loss.svg"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three types of one model."""
    folder = tmp_path_factory.mktemp("made")
    model = write_tiny_gemma(folder / "tiny", "gemma2", overrides=LLAMACPP["gemma2"])
    types = "--type Q8_0,Q5_0,Q4_0".split()
    assert main(["gguf", str(model), *types, *FEW, "-o", str(folder / "ggufs")]) == 0
    return folder


@pytest.fixture
def ggufs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "ggufs", tmp_path / "ggufs"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_stand_in() as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        files = f"{stand_in.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield stand_in


def names(hub: StandIn) -> set[str]:
    return set(hub.repositories[REPOSITORY].files()) - {".gitattributes"}


def fetched(hub: StandIn, copy: Path) -> Path:
    for name, content in hub.repositories[REPOSITORY].files().items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    return copy


def test_a_folder_of_artifacts_is_shown_as_one_table(run: Run, ggufs: Path) -> None:
    lines = run("show", "ggufs").out.splitlines()
    assert lines[0].startswith("ggufs: 3 files of tiny (in bfloat16: ")
    assert lines[1].split() == ["type", "size", "bits", *"KL mean KL 99.9 % top-1 file".split()]
    assert [line.split()[0] for line in lines[2:5]] == ["Q8_0", "Q5_0", "Q4_0"]
    assert lines[4].endswith("  ggufs/Q4_0/tiny-Q4_0.gguf")
    assert lines[-1] == "next: gemquant push ggufs ME/tiny-GGUF"


def test_a_file_of_an_artifact_stands_for_its_folder(run: Run, ggufs: Path) -> None:
    assert run("show", "ggufs/Q4_0/tiny-Q4_0.gguf").out == run("show", "ggufs/Q4_0").out
    assert run("verify", "ggufs/Q4_0/tiny-Q4_0.gguf", "-q").out == "ggufs/Q4_0: valid\n"


def test_verify_descends(run: Run, ggufs: Path) -> None:
    (ggufs / "Q5_0" / "NOTICE").write_text("")
    result = run("verify", "ggufs", "-q")
    assert result.code == 6
    assert result.out == "ggufs/Q4_0: valid\nggufs/Q5_0: not valid\nggufs/Q8_0: valid\n"


def test_eval_of_a_folder_ends_with_a_line_each(run: Run, made: Path, ggufs: Path) -> None:
    model = ("--against", str(made / "tiny"))
    result = run("eval", "ggufs", *model, "--no-native", "--threads", "1", "-q")
    assert result.code == 0, result.err
    assert "Level reference" in result.out
    assert [line.split()[0] for line in result.out.splitlines()[-4:-1]] == ["Q8_0", "Q5_0", "Q4_0"]


def test_the_gate_measures_each_artifact_of_a_folder(run: Run, made: Path, ggufs: Path) -> None:
    options = ("--against", str(made / "tiny"), "--no-native", "--threads", "1", "-q")
    assert run("eval", "ggufs", *options, "-o", "eval.json").code == 0
    baseline = ("--baseline", "base.json")
    assert run("gate", "eval.json", *baseline, "--update-baseline", "--reason", "first").code == 0
    judged = run("gate", "ggufs", *baseline, "--threads", "1", "-q")
    assert judged.code == 0, judged.err
    assert [line.partition(":")[0] for line in judged.out.splitlines()[:3]] == [
        *("Q4_0", "Q5_0", "Q8_0"),
    ]


def test_the_cards_of_a_folder_are_renewed_with_its_evaluation(
    run: Run, made: Path, ggufs: Path
) -> None:
    options = ("--against", str(made / "tiny"), "--no-native", "--threads", "1", "-q")
    assert run("eval", "ggufs", *options, "-o", "eval.json").code == 0
    written = run("card", "ggufs", "--evaluation", "eval.json")
    assert written.code == 0, written.err
    assert written.out.splitlines() == [
        f"ggufs/{each}/README.md: written; changed: README.md, evaluation.json, manifest.json"
        for each in ("Q4_0", "Q5_0", "Q8_0")
    ]
    assert run("card", "ggufs", "--check").code == 0
    assert run("card", "ggufs", "-o", "card.md").code == 2


def test_a_set_is_pushed_flat_with_one_card_and_comes_back_valid(
    run: Run, ggufs: Path, hub: StandIn
) -> None:
    result = run("push", "ggufs", REPOSITORY, "-q")
    assert result.code == 0, result.err
    types = ("Q4_0", "Q5_0", "Q8_0")
    assert names(hub) == {
        *(f"tiny-{each}.gguf" for each in types),
        *(f"manifests/{each}.json" for each in types),
        *("NOTICE", CARD, PICTURE),
    }
    card = hub.repositories[REPOSITORY].files()[CARD].decode()
    assert "# tiny GGUF, for llama.cpp\n" in card
    assert "\n![Size against mean KL divergence, a point per file](size-and-loss.svg)\n" in card
    assert "\nllama-server -hf me/tiny-GGUF:Q4_0\n" in card
    assert run("verify", str(fetched(hub, Path("copy"))), "-q").out == "copy: valid\n"
    shown = run("show", "copy").out.splitlines()
    assert shown[0].startswith("copy: 3 files of tiny (in bfloat16: ")
    assert [line.split()[-1] for line in shown[2:5]] == [
        *("copy/tiny-Q8_0.gguf", "copy/tiny-Q5_0.gguf", "copy/tiny-Q4_0.gguf"),
    ]
    assert run("push", "ggufs", REPOSITORY, "-q").out.split(": ")[1].startswith("unchanged")


def test_a_changed_or_added_file_of_a_fetched_set_is_found(
    run: Run, ggufs: Path, hub: StandIn
) -> None:
    assert run("push", "ggufs", REPOSITORY, "-q").code == 0
    copy = fetched(hub, Path("copy"))
    (copy / "added.txt").write_text("?")
    (copy / "tiny-Q4_0.gguf").write_bytes(b"x")
    result = run("verify", "copy", "-q")
    assert result.code == 6
    assert "added.txt is in copy, but in none of its manifests." in result.err
    assert "tiny-Q4_0.gguf is not the file the manifest describes" in result.err


def test_a_dry_run_shows_files_and_card_and_asks_nobody(
    run: Run, ggufs: Path, hub: StandIn
) -> None:
    result = run("push", "ggufs", REPOSITORY, "--dry-run", "-q")
    for words in ("manifests/Q4_0.json", "size-and-loss.svg", "# tiny GGUF, for llama.cpp"):
        assert words in result.out
    assert hub.requests == []


def test_one_more_type_is_added_and_the_card_shows_all(run: Run, ggufs: Path, hub: StandIn) -> None:
    assert run("push", "ggufs/Q8_0", "ggufs/Q5_0", REPOSITORY, "-q").code == 0
    before = hub.repositories[REPOSITORY].files()
    refused = run("push", "ggufs/Q4_0", REPOSITORY, "-q")
    assert (refused.code, "--add adds a GGUF file" in refused.err) == (7, True)
    added = run("push", "ggufs/Q4_0", REPOSITORY, "--add", "-q")
    assert added.code == 0, added.err
    after = hub.repositories[REPOSITORY].files()
    assert set(after) - set(before) == {"tiny-Q4_0.gguf", "manifests/Q4_0.json"}
    assert {name for name in before if before[name] != after[name]} == {CARD, PICTURE}
    card = after[CARD].decode()
    assert all(f"| tiny-{each}\\_0.gguf |" in card for each in ("Q8", "Q5", "Q4"))
    assert run("verify", str(fetched(hub, Path("copy"))), "-q").code == 0


def test_another_file_of_the_same_type_is_refused_unless_it_may_replace(
    run: Run, ggufs: Path, hub: StandIn
) -> None:
    assert run("push", "ggufs", REPOSITORY, "-q").code == 0
    repository = hub.repositories[REPOSITORY]
    old = json.loads(repository.files()["manifests/Q4_0.json"])
    old["files"]["tiny-Q4_0.gguf"]["sha256"] = "0" * 64
    tree = dict(repository.commits[repository.branches["main"]])
    stored = tree["manifests/Q4_0.json"]
    tree["manifests/Q4_0.json"] = type(stored)(json.dumps(old).encode(), large=False)
    repository.commit("main", tree, "another")
    result = run("push", "ggufs/Q4_0", REPOSITORY, "--add", "-q")
    assert (result.code, "other content: manifests/Q4_0.json" in result.err) == (7, True)
    assert run("push", "ggufs/Q4_0", REPOSITORY, "--add", "--replace", "-q").code == 0


def test_adding_to_what_is_no_set_is_refused(run: Run, ggufs: Path, hub: StandIn) -> None:
    hub.repository(REPOSITORY, notes=b"mine")
    result = run("push", "ggufs/Q4_0", REPOSITORY, "--add", "-q")
    assert (result.code, "has no manifests/ on main" in result.err) == (7, True)


def test_only_ggufs_share_a_branch(run: Run, made: Path, ggufs: Path) -> None:
    assert run("cast", str(made / "tiny"), *FEW, "--no-eval", "-o", "cast").code == 0
    result = run("push", "ggufs/Q4_0", "cast", REPOSITORY, "--dry-run", "-q")
    assert (result.code, "only GGUF files share a branch" in result.err) == (2, True)


def test_swapped_arguments_are_named(run: Run, ggufs: Path) -> None:
    result = run("push", REPOSITORY, "ggufs", "-q")
    assert result.code == 2
    assert "hint: The artifact comes first: gemquant push ggufs me/tiny-GGUF" in result.err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothere", "nothere: no such file or folder."),
        ("model", "model is a model, not an artifact: it has no manifest.json.\n  hint: Make one:"),
        ("empty", "empty is not an artifact: it has no manifest.json, nor has a folder in it."),
        ("prepared", "prepared: prepared for a toolkit, not converted yet."),
    ],
)
@pytest.mark.parametrize("command", ["show", "eval", "verify", "card", "push"])
def test_what_is_no_artifact_is_called_by_its_name(
    run: Run, made: Path, command: str, path: str, message: str
) -> None:
    Path("empty").mkdir()
    Path("model").symlink_to(made / "tiny")
    Path("prepared").mkdir()
    for name in ("job.json", "convert.py"):
        (Path("prepared") / name).write_text("")
    result = run(command, path, *(["me/x"] if command == "push" else []), "-q")
    assert message in result.err
    assert result.code in {2, 6}


def test_a_set_is_measured_by_its_id_and_as_a_copy(
    run: Run, made: Path, ggufs: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(ggufs.parent / "cache"))
    assert run("push", "ggufs", REPOSITORY, "-q").code == 0
    fetched(hub, Path("copy"))
    options = ("--against", str(made / "tiny"), "--no-native", "--threads", "1", "-q")
    for where in ("copy", REPOSITORY):
        result = run("eval", where, *options)
        assert result.code == 0, result.err
        lines = result.out.splitlines()[-4:-1]
        assert [line.split()[0] for line in lines] == ["tiny-Q8_0", "tiny-Q5_0", "tiny-Q4_0"]
    content = Path("copy/tiny-Q4_0.gguf").read_bytes()
    Path("copy/tiny-Q4_0.gguf").write_bytes(content[:-1] + b"x")
    assert run("eval", "copy", *options).code == 6


def test_the_card_of_a_set_is_made_again_from_its_manifests(
    run: Run, ggufs: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(ggufs.parent / "cache"))
    assert run("push", "ggufs", REPOSITORY, "-q").code == 0
    copy = fetched(hub, Path("copy"))
    assert run("card", "copy", "--check").out == "copy/README.md: up to date\n"
    assert run("card", REPOSITORY, "--check").code == 0
    before = (copy / CARD).read_text()
    (copy / CARD).write_text(before.replace("for llama.cpp", "for me"))
    assert run("card", "copy", "--check").code == 6
    assert run("card", "copy").out == f"copy/README.md: written; changed: {CARD}\n"
    assert (copy / CARD).read_text() == before
    assert run("card", REPOSITORY).code == 2
    assert run("card", REPOSITORY, "-o", "card.md").code == 0
    assert Path("card.md").read_text() == before


def test_the_card_of_a_set_has_the_figures_of_each_file_as_metadata(
    run: Run, ggufs: Path, hub: StandIn
) -> None:
    assert run("push", "ggufs", REPOSITORY, "-q").code == 0
    data = ModelCard(hub.repositories[REPOSITORY].files()[CARD].decode()).data
    assert isinstance(data, ModelCardData)
    assert data.eval_results is not None
    assert data.model_name == "tiny GGUF"
    found = [(result.metric_config, result.metric_type) for result in data.eval_results]
    types = ("kl_divergence", "kl_divergence", "top1_agreement")
    assert found == [(label, metric) for label in ("Q8_0", "Q5_0", "Q4_0") for metric in types]
