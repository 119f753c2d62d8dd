"""Several artifacts of one model as one thing: shown, verified, described, pushed, fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
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
CARD = "README.md"
PICTURES = (
    {f"size-and-loss{dark}.{kind}" for dark in ("", "-dark") for kind in ("svg", "png")}
    if find_spec("matplotlib")
    else set()
)

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
        *("NOTICE", CARD, *PICTURES),
    }
    card = hub.repositories[REPOSITORY].files()[CARD].decode()
    assert "# tiny GGUF\n" in card
    assert ("<picture>" in card) == bool(PICTURES)
    assert "\nllama-server -hf me/tiny-GGUF:Q8_0\n" in card
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
    for words in ("manifests/Q4_0.json", "# tiny GGUF", "## What fits", *PICTURES):
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
    assert {name for name in before if before[name] != after[name]} == {CARD, *PICTURES}
    card = after[CARD].decode()
    assert all(f"| [{each}\\_0](tiny-{each}_0.gguf) |" in card for each in ("Q8", "Q5", "Q4"))
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
    assert (
        result.code,
        "has no manifests/ on main, nor a folder with a manifest.json" in result.err,
    ) == (7, True)


def test_only_ggufs_lie_flat(run: Run, made: Path, ggufs: Path) -> None:
    assert run("cast", str(made / "tiny"), *FEW, "--no-eval", "-o", "cast").code == 0
    result = run("push", "ggufs/Q4_0", "cast", REPOSITORY, "--layout", "files", "-q")
    assert (result.code, "only GGUF files lie flat in a repository" in result.err) == (2, True)


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
    (copy / CARD).write_text(before.replace("# tiny GGUF", "# my GGUF"))
    assert run("card", "copy", "--check").code == 6
    assert run("card", "copy").out == f"copy/README.md: written; changed: {CARD}\n"
    assert (copy / CARD).read_text() == before
    assert run("card", REPOSITORY).code == 2
    assert run("card", REPOSITORY, "-o", "card.md").code == 0
    assert Path("card.md").read_text() == before


def test_one_artifact_is_checked_described_and_measured_by_its_id(
    run: Run, made: Path, ggufs: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(ggufs.parent / "cache"))
    assert run("push", "ggufs/Q4_0", "me/tiny-one", "-q").code == 0
    checked = run("card", "me/tiny-one", "--check")
    assert checked.code == 0, checked.err
    assert checked.out.endswith("/README.md: up to date\n")
    refused = run("card", "me/tiny-one")
    assert refused.code == 2
    assert "hint: gemquant card me/tiny-one -o card.md" in refused.err
    assert run("card", "me/tiny-one", "-o", "card.md").code == 0
    pushed = hub.repositories["me/tiny-one"].files()[CARD].decode()
    assert Path("card.md").read_text() == pushed
    options = ("--against", str(made / "tiny"), "--no-native", "--threads", "1", "-q")
    measured = run("eval", "me/tiny-one", *options)
    assert measured.code == 0, measured.err
    (snapshot,) = (ggufs.parent / "cache").glob("models--me--tiny-one/snapshots/*")
    assert run("verify", str(snapshot)).code == 0


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


# ---------------------------------------------------------------- folders of any artifacts


RECIPE = """
samples = 2
seq_len = 24
eval_windows = 2
eval_slices = ["english", "code"]

[[jobs]]
quantizer = "gguf"
type = ["Q8_0", "Q4_0"]

[[jobs]]
quantizer = "nf4"

[[jobs]]
quantizer = "rtn"
bits = 8
group_size = 64
"""
FOLDERS = {"tiny-gguf-Q4_0", "tiny-gguf-Q8_0", "tiny-nf4-g64", "tiny-rtn-w8-g64"}


@pytest.fixture(scope="module")
def ran(made: Path) -> Path:
    """What one run makes, with its card."""
    (made / "recipe.toml").write_text(RECIPE)
    arguments = ["run", str(made / "recipe.toml"), str(made / "tiny"), "-q", "--threads", "1"]
    assert main([*arguments, "-o", str(made / "tiny-quants")]) == 0
    return made / "tiny-quants"


@pytest.fixture
def quants(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran, tmp_path / "tiny-quants"))


def test_a_run_ends_with_one_card_for_all(quants: Path) -> None:
    assert {each.name for each in quants.iterdir()} == FOLDERS | {CARD, *PICTURES}
    card = (quants / CARD).read_text()
    for words in (
        "# tiny quantized\n",
        "### For llama.cpp, Ollama, LM Studio\n",
        "### For transformers with bitsandbytes\n",
        "| [Q4\\_0](tiny-gguf-Q4_0/tiny-Q4_0.gguf) | ",
        "| [rtn-w8-g64](tiny-rtn-w8-g64/) | ",
        "## What fits\n",
        "hf download OWNER/NAME --include 'tiny-nf4-g64/*' --local-dir NAME\n",
        "vLLM has no kernel for 8 bits with zero points.\n",
        "Gemma Terms of Use",
    ):
        assert words in card, words
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    containers = {"gguf", "bitsandbytes", "compressed-tensors"}
    assert set(data.tags or ()) == containers | {"gemma", "8-bit", "4-bit", "rtn", "nf4"}
    assert {result.metric_config for result in data.eval_results or ()} == {
        *("Q8_0", "Q4_0", "nf4-g64", "rtn-w8-g64"),
    }


def test_the_card_of_a_collection_is_the_same_every_time(run: Run, quants: Path) -> None:
    before = {name: (quants / name).read_bytes() for name in (CARD, *PICTURES)}
    assert run("card", "--collection", "tiny-quants", "--check").code == 0
    for name in before:
        (quants / name).unlink()
    assert run("card", "--collection", "tiny-quants", "--check").code == 6
    assert run("card", "--collection", "tiny-quants").code == 0
    assert {name: (quants / name).read_bytes() for name in before} == before


def test_pictures_of_other_figures_are_drawn_anew(run: Run, quants: Path) -> None:
    pytest.importorskip("matplotlib")
    before = (quants / "size-and-loss.svg").read_bytes()
    shutil.rmtree(quants / "tiny-nf4-g64")
    changed = run("card", "--collection", "tiny-quants", "--json").out
    assert set(json.loads(changed)["changed"]) == {CARD, *PICTURES}
    assert (quants / "size-and-loss.svg").read_bytes() != before


def test_without_matplotlib_the_card_says_what_a_picture_needs(
    run: Run, ggufs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemquant.publish.picture.installed", lambda: False)
    assert run("card", "--collection", "ggufs").code == 0
    card = (ggufs / CARD).read_text()
    assert (
        "<!-- No picture: pip install 'gemquant[picture]', then make this card again. -->" in card
    )
    assert "<picture>" not in card


def test_a_readme_of_the_users_own_stays(run: Run, quants: Path) -> None:
    (quants / CARD).write_text("# Mine\n")
    result = run("card", "--collection", "tiny-quants")
    assert (result.code, "is no card of gemquant's" in result.err) == (7, True)
    assert (quants / CARD).read_text() == "# Mine\n"
    assert run("card", "--collection", "tiny-quants", "--force").code == 0


def test_artifacts_of_two_models_have_no_common_card(run: Run, made: Path, quants: Path) -> None:
    other = shutil.copytree(made / "tiny", "other")
    assert run("cast", str(other), *FEW, "--no-eval", "-o", "tiny-quants/other").code == 0
    result = run("card", "--collection", "tiny-quants")
    assert (result.code, "other, tiny: a repository is of one model." in result.err) == (2, True)


def test_a_collection_is_pushed_in_folders_and_comes_back_valid(
    run: Run, quants: Path, hub: StandIn
) -> None:
    pushed = run("push", "tiny-quants", REPOSITORY, "-q")
    assert pushed.code == 0, pushed.err
    repository = hub.repositories[REPOSITORY]
    assert {name.partition("/")[0] for name in names(hub)} == FOLDERS | {CARD, *PICTURES}
    assert (
        "hf download me/tiny-GGUF --include 'tiny-nf4-g64/*'" in repository.files()[CARD].decode()
    )
    copy = fetched(hub, Path("copy"))
    for folder in FOLDERS:
        manifest = (copy / folder / "manifest.json").read_bytes()
        assert manifest == (quants / folder / "manifest.json").read_bytes()
    assert run("verify", "copy", "-q").code == 0
    assert run("card", "--collection", "copy", "--check").code == 0
    assert run("push", "tiny-quants", REPOSITORY, "-q").out.split(": ")[1].startswith("unchanged")


def test_an_interrupted_push_of_a_collection_resumes_with_the_next_artifact(
    run: Run, quants: Path, hub: StandIn
) -> None:
    commits = 0

    def fail(method: str, path: str) -> None:
        nonlocal commits
        commits += "/commit/" in path
        if commits == 3:
            raise ConnectionResetError

    hub.fault = fail
    assert run("push", "tiny-quants", REPOSITORY, "-q").code == 7
    first = {name.partition("/")[0] for name in names(hub)}
    assert first == {"tiny-gguf-Q4_0", "tiny-gguf-Q8_0"}
    hub.fault = lambda method, path: None
    sent = json.loads(run("push", "tiny-quants", REPOSITORY, "-q", "--json").out)["pushed"]["sent"]
    assert {name.partition("/")[0] for name in sent} == (FOLDERS | {CARD, *PICTURES}) - first


def test_an_artifact_is_added_to_a_collection_in_folders(
    run: Run, quants: Path, hub: StandIn
) -> None:
    folders = [f"tiny-quants/{name}" for name in sorted(FOLDERS)]
    assert run("push", *folders[1:], REPOSITORY, "-q").code == 0
    added = run("push", folders[0], REPOSITORY, "--add", "-q")
    assert added.code == 0, added.err
    assert run("card", "--collection", str(fetched(hub, Path("copy"))), "--check").code == 0


def test_each_artifact_may_have_a_repository(run: Run, quants: Path, hub: StandIn) -> None:
    result = run("push", "tiny-quants", "me", "--layout", "repositories", "-q")
    assert result.code == 0, result.err
    assert set(hub.repositories) == {f"me/{name}" for name in FOLDERS}
    wrong = run("push", "tiny-quants", REPOSITORY, "--layout", "repositories", "-q")
    assert (wrong.code, "Name the owner alone" in wrong.err) == (2, True)
