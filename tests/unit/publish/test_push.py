"""A push sends the artifact and nothing else, against a stand-in of the Hub's API (a contract)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from gemquant.core.artifact import Artifact, Manifest
from gemquant.core.artifact.finalize import content_digest, finalize
from gemquant.core.protocols import Silence
from gemquant.errors import ArtifactError, OutputError, UsageError
from gemquant.models.licences import APACHE, GEMMA_TERMS, HEALTH_AI
from gemquant.publish.card import make_card, refuse_stale
from gemquant.publish.push import Destination, Pushed, Upload, prepare_upload, push
from tests.helpers.hub_stand_in import TOKEN, Refusal, StandIn, hub_stand_in

REPOSITORY = "me/gemma-awq"

# huggingface_hub 2.4.0 sends large files in a way that its own HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    # The Xet protocol is a binary client of its own, which a stand-in of the API cannot serve.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with hub_stand_in() as stand_in:
        yield stand_in


def prepared(artifact: Artifact, destination: Destination | None = None) -> Upload:
    return prepare_upload(
        [artifact.path], destination or Destination(REPOSITORY), message="Upload gemma"
    )


def pushed(
    artifact: Artifact,
    hub: StandIn,
    destination: Destination | None = None,
    *,
    replace: bool = False,
    token: str = TOKEN,
) -> Pushed:
    api = HfApi(endpoint=hub.url, token=token)
    return push(prepared(artifact, destination), api, replace=replace, progress=Silence())


def contents(artifact: Artifact, destination: Destination | None = None) -> dict[str, bytes]:
    return {file.name: file.content() for file in prepared(artifact, destination).files}


def without_attributes(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def test_what_arrives_is_the_manifests_files_to_the_byte(artifact: Artifact, hub: StandIn) -> None:
    pushed(artifact, hub)
    there = without_attributes(hub.repositories[REPOSITORY].files())
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in there.items()}
    manifest = Manifest.model_validate_json(there.pop("manifest.json"))
    assert content_digest(manifest) == content_digest(artifact.manifest)
    del hashes["manifest.json"]
    assert hashes == {name: record.sha256 for name, record in manifest.files.items()}


def test_the_card_that_arrives_names_the_repository_and_the_own_one_stays(
    artifact: Artifact, hub: StandIn, tmp_path: Path
) -> None:
    pushed(artifact, hub)
    there = without_attributes(hub.repositories[REPOSITORY].files())
    assert b"hf download me/gemma-awq --local-dir gemma-awq\n" in there["README.md"]
    assert b"vllm serve me/gemma-awq\n" in there["README.md"]
    assert b"path/to/this/folder" not in there["README.md"]
    assert Artifact.open(artifact.path) == artifact
    for name, content in there.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    refuse_stale(make_card(tmp_path / "copy"))


def test_a_repository_is_made_private(artifact: Artifact, hub: StandIn) -> None:
    pushed(artifact, hub)
    assert hub.repositories[REPOSITORY].private


def test_a_public_repository_must_be_asked_for(artifact: Artifact, hub: StandIn) -> None:
    pushed(artifact, hub, Destination(REPOSITORY, private=False))
    assert not hub.repositories[REPOSITORY].private


def test_everything_comes_in_one_commit(artifact: Artifact, hub: StandIn) -> None:
    pushed(artifact, hub)
    assert hub.repositories[REPOSITORY].messages == ["initial commit", "Upload gemma"]


def test_a_file_in_parts_arrives_whole(artifact: Artifact, hub: StandIn) -> None:
    hub.part_bytes = 10_000
    pushed(artifact, hub)
    assert len(hub.parts) > 1
    assert without_attributes(hub.repositories[REPOSITORY].files()) == contents(artifact)


def test_a_second_push_sends_nothing(artifact: Artifact, hub: StandIn) -> None:
    first = pushed(artifact, hub)
    hub.requests.clear()
    again = pushed(artifact, hub)
    assert (again.sent, again.commit) == ((), first.commit)
    assert {method for method, _ in hub.requests} == {"GET"}


class Interrupted:
    """Progress during which somebody presses Ctrl-C once a file of this name is to be sent."""

    def __init__(self, name: str) -> None:
        self._name = name

    def start(self, task: str, total: int) -> None: ...

    def advance(self, task: str, amount: int = 1) -> None: ...

    def note(self, text: str) -> None:
        if text.startswith(f"uploading {self._name},"):
            raise KeyboardInterrupt


def two_parts(artifact: Artifact) -> Artifact:
    """The artifact with a second large file."""
    (artifact.path / "zz.gguf").write_bytes(b"g" * 200_000)
    (artifact.path / "README.md").unlink()
    finalize(artifact.path, _unsealed(artifact))
    return Artifact.open(artifact.path)


def _unsealed(artifact: Artifact) -> Manifest:
    (artifact.path / "manifest.json").unlink()
    return artifact.manifest.model_copy(update={"files": {}})


def test_an_interrupted_push_commits_nothing_and_goes_on_where_it_stopped(
    artifact: Artifact, hub: StandIn
) -> None:
    artifact = two_parts(artifact)
    large = sorted(
        (artifact.path / name for name in ("model.safetensors", "zz.gguf")),
        key=lambda path: path.stat().st_size,
    )
    api = HfApi(endpoint=hub.url, token=TOKEN)
    with pytest.raises(KeyboardInterrupt):
        push(prepared(artifact), api, replace=False, progress=Interrupted(large[1].name))
    repository = hub.repositories[REPOSITORY]
    assert list(repository.files()) == [".gitattributes"]
    sent = [hashlib.sha256(path.read_bytes()).hexdigest() for path in large]
    assert hub.uploaded == sent[:1]
    pushed(artifact, hub)
    assert hub.uploaded == sent  # the first was not sent again
    assert without_attributes(repository.files()) == contents(artifact)


def test_a_connection_that_breaks_says_to_run_it_again(artifact: Artifact, hub: StandIn) -> None:
    def fault(method: str, path: str) -> None:
        if "/commit/" in path:
            raise ConnectionResetError  # the handler dies; the client sees the connection close

    hub.fault = fault
    with pytest.raises(OutputError, match="cannot be reached, or closed the connection") as caught:
        pushed(artifact, hub)
    assert "sends only what is missing" in str(caught.value.hint)
    assert list(hub.repositories[REPOSITORY].files()) == [".gitattributes"]


def test_other_content_is_refused_before_anything_is_sent(artifact: Artifact, hub: StandIn) -> None:
    theirs = hub.repository(REPOSITORY, notes=b"mine", **{"README.md": b"old"})
    before = theirs.files()
    with pytest.raises(OutputError, match=r"other files: notes; other content: README\.md"):
        pushed(artifact, hub)
    assert (theirs.files(), hub.uploaded) == (before, [])


def test_replace_makes_the_branch_exactly_the_artifact(artifact: Artifact, hub: StandIn) -> None:
    theirs = hub.repository(REPOSITORY, notes=b"mine", **{"README.md": b"old"})
    result = pushed(artifact, hub, replace=True)
    assert result.deleted == ("notes",)
    assert without_attributes(theirs.files()) == contents(artifact)


def test_a_new_branch_holds_the_artifact_and_main_stays(artifact: Artifact, hub: StandIn) -> None:
    theirs = hub.repository(REPOSITORY, notes=b"mine")
    branch = Destination(REPOSITORY, "w4-g128")
    pushed(artifact, hub, branch)
    assert without_attributes(theirs.files("w4-g128")) == contents(artifact, branch)
    assert without_attributes(theirs.files()) == {"notes": b"mine"}


def test_a_public_repository_is_not_filled_by_a_private_push(
    artifact: Artifact, hub: StandIn
) -> None:
    hub.repository(REPOSITORY, private=False)
    with pytest.raises(OutputError, match="exists and is public; this push is private"):
        pushed(artifact, hub)


def test_somebody_elses_commit_during_the_push_stops_it(artifact: Artifact, hub: StandIn) -> None:
    theirs = hub.repository(REPOSITORY)

    def fault(method: str, path: str) -> None:
        if path == "/api/validate-yaml":
            theirs.commit("main", dict(theirs.commits[theirs.branches["main"]]), "theirs")

    hub.fault = fault
    with pytest.raises(OutputError, match="changed during the push"):
        pushed(artifact, hub)
    assert theirs.messages == ["initial commit", "theirs"]


def test_a_file_that_the_hub_garbles_is_noticed(artifact: Artifact, hub: StandIn) -> None:
    theirs = hub.repository(REPOSITORY)
    commit = theirs.commit

    def garbling(branch: str, files: dict, message: str) -> str:
        files.pop("config.json")
        return commit(branch, files, message)

    theirs.commit = garbling  # type: ignore[method-assign]
    with pytest.raises(OutputError, match=r"is not the artifact: config\.json"):
        pushed(artifact, hub)


def test_a_file_that_changes_after_the_check_is_not_committed(
    artifact: Artifact, hub: StandIn
) -> None:
    upload = prepared(artifact)
    (artifact.path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json changed while it was uploaded"):
        push(upload, HfApi(endpoint=hub.url, token=TOKEN), replace=False, progress=Silence())
    assert list(hub.repositories[REPOSITORY].files()) == [".gitattributes"]


def test_a_wrong_token_is_named_without_showing_it(artifact: Artifact, hub: StandIn) -> None:
    with pytest.raises(OutputError, match="does not accept the token") as caught:
        pushed(artifact, hub, token="hf_wrongWrongWrong")
    assert "hf auth login" in str(caught.value)
    assert "hf_wrong" not in str(caught.value)


def test_another_owners_repository_needs_their_token(artifact: Artifact, hub: StandIn) -> None:
    with pytest.raises(OutputError, match="may not write to you/gemma") as caught:
        pushed(artifact, hub, Destination("you/gemma"))
    assert "https://huggingface.co/settings/tokens" in str(caught.value.hint)


def test_what_the_hub_says_is_passed_on_without_tokens_or_signed_addresses(
    artifact: Artifact, hub: StandIn
) -> None:
    def fault(method: str, path: str) -> None:
        if "/commit/" in path:
            raise Refusal(
                418, message=f"teapot {TOKEN} http://store.example/x?X-Amz-Signature=secret"
            )

    hub.fault = fault
    with pytest.raises(OutputError, match="HTTP 418") as caught:
        pushed(artifact, hub)
    assert "teapot hf_… http://store.example/x" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_a_token_the_command_to_log_in_is_named(
    artifact: Artifact, hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="Not logged in to the Hugging Face Hub") as caught:
        push(prepared(artifact), HfApi(endpoint=hub.url), replace=False, progress=Silence())
    assert str(caught.value.hint).startswith("Run hf auth login, or set HF_TOKEN")
    assert hub.requests == []


def test_an_unreachable_hub_says_so(artifact: Artifact) -> None:
    api = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(OutputError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        push(prepared(artifact), api, replace=False, progress=Silence())


def test_a_broken_artifact_is_refused(artifact: Artifact) -> None:
    (artifact.path / "added.txt").write_text("?")
    with pytest.raises(ArtifactError, match=r"added\.txt is in"):
        prepared(artifact)


def resealed(artifact: Artifact, **changed: str) -> Artifact:
    """Change files and make the manifest agree with them."""
    files = dict(artifact.manifest.files)
    for name, content in changed.items():
        data = content.encode()
        (artifact.path / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        files[name] = files[name].model_copy(update={"sha256": digest, "bytes": len(data)})
    for name in [name for name in files if not (artifact.path / name).exists()]:
        del files[name]
    manifest = artifact.manifest.model_copy(update={"files": files})
    (artifact.path / "manifest.json").write_bytes(manifest.to_json())
    return Artifact.open(artifact.path)


@pytest.mark.parametrize("name", ["NOTICE", "README.md"])
def test_without_the_licence_files_nothing_is_pushed(artifact: Artifact, name: str) -> None:
    (artifact.path / name).unlink()
    with pytest.raises(ArtifactError, match=rf"has no {name}; the license \(gemma\) requires it"):
        prepared(resealed(artifact))


def test_an_emptied_notice_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="NOTICE must contain: Gemma is provided under"):
        prepared(resealed(artifact, NOTICE="\n"))


def test_a_notice_of_terms_that_do_not_hold_is_refused(artifact: Artifact) -> None:
    both = GEMMA_TERMS.notice + APACHE.notice
    with pytest.raises(ArtifactError, match=r"NOTICE names the terms 'apache-2\.0'"):
        prepared(resealed(artifact, NOTICE=both))


def test_a_medgemma_is_pushed_under_its_own_terms_alone(artifact: Artifact) -> None:
    for name in ("NOTICE", "README.md", "manifest.json"):
        (artifact.path / name).unlink()
    finalize(artifact.path, artifact.manifest.model_copy(update={"license": HEALTH_AI.name}))
    medgemma = Artifact.open(artifact.path)
    assert prepared(medgemma)
    with pytest.raises(ArtifactError, match="names the terms 'gemma', which do not hold"):
        prepared(resealed(medgemma, NOTICE=HEALTH_AI.notice + GEMMA_TERMS.notice))


def test_a_card_without_the_terms_is_refused(artifact: Artifact) -> None:
    card = (artifact.path / "README.md").read_text()
    card = card.replace("ai.google.dev/gemma/prohibited_use_policy", "example.org")
    with pytest.raises(ArtifactError, match=r"has no link to .*prohibited_use_policy"):
        prepared(resealed(artifact, **{"README.md": card}))


def test_a_card_of_another_licence_is_refused(artifact: Artifact) -> None:
    card = (artifact.path / "README.md").read_text().replace("license: gemma", "license: mit", 1)
    with pytest.raises(ArtifactError, match="states the licence 'mit', the manifest 'gemma'"):
        prepared(resealed(artifact, **{"README.md": card}))


@pytest.mark.parametrize("name", ["gemma", "a/b/c", "../x", "me/..", "me/a b", ""])
def test_a_repository_has_an_owner_and_a_name(artifact: Artifact, name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a Hub repository"):
        prepared(artifact, Destination(name))


@pytest.mark.parametrize("revision", ["", "refs/pr/1", "a..b", "-x", "a b"])
def test_a_revision_is_a_branch(artifact: Artifact, revision: str) -> None:
    with pytest.raises(UsageError, match="is not a valid branch name"):
        prepared(artifact, Destination(REPOSITORY, revision))
