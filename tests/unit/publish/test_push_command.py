"""`gemquant push` as it is typed, against the stand-in of the Hub's API."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from gemquant.core.artifact import Artifact
from gemquant.core.artifact.finalize import content_files
from tests.helpers.hub_stand_in import TOKEN, StandIn, hub_stand_in
from tests.unit.cli.conftest import Run, run  # noqa: F401 (a fixture)

REPOSITORY = "me/gemma-awq"

# huggingface_hub 2.4.0 sends large files in a way that its own HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_stand_in() as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        yield stand_in


def test_a_dry_run_lists_exactly_what_would_be_sent_and_asks_nobody(
    run: Run,  # noqa: F811
    artifact: Artifact,
    hub: StandIn,
) -> None:
    result = run("push", str(artifact.path), REPOSITORY, "--dry-run", "--json")
    listed = {file["name"]: file["sha256"] for file in json.loads(result.out)["files"]}
    content = content_files(artifact.manifest)
    assert set(listed) == {*content, "README.md", "manifest.json"}
    assert {name: listed[name] for name in content} == {n: r.sha256 for n, r in content.items()}
    assert (result.code, hub.requests) == (0, [])


def test_a_dry_run_says_where_to_and_for_whom(run: Run, artifact: Artifact) -> None:  # noqa: F811
    out = run("push", str(artifact.path), REPOSITORY, "--dry-run", "--revision", "w4").out
    first, *_, last = out.splitlines()
    assert first == "Would push to me/gemma-awq, branch w4, private: Upload artifact"
    assert last.startswith("5 files, ")
    assert last.endswith("Nothing was sent.")


def test_a_push_says_where_it_went_and_never_the_token(
    run: Run,  # noqa: F811
    artifact: Artifact,
    hub: StandIn,
) -> None:
    result = run("push", str(artifact.path), REPOSITORY, "-v")
    commit = hub.repositories[REPOSITORY].branches["main"]
    assert result.out == (f"{hub.url}/me/gemma-awq/tree/main: 5 of 5 files sent, commit {commit}\n")
    assert TOKEN not in result.out + result.err


def test_the_same_as_json(run: Run, artifact: Artifact, hub: StandIn) -> None:  # noqa: F811
    run("push", str(artifact.path), REPOSITORY, "-q")
    again = json.loads(run("push", str(artifact.path), REPOSITORY, "--json", "-q").out)
    assert again["pushed"] == {
        "url": f"{hub.url}/me/gemma-awq/tree/main",
        "commit": hub.repositories[REPOSITORY].branches["main"],
        "sent": [],
        "deleted": [],
    }


def test_what_the_hub_refuses_ends_with_the_code_of_a_destination(
    run: Run,  # noqa: F811
    artifact: Artifact,
    hub: StandIn,
) -> None:
    result = run("push", str(artifact.path), "you/gemma", "-q")
    assert (result.code, result.out) == (7, "")
    assert "error: The token may not write to you/gemma. (HTTP 403)\n  hint: " in result.err


def test_a_signature_goes_along_only_when_its_key_is_named(
    run: Run,  # noqa: F811
    artifact: Artifact,
) -> None:
    pytest.importorskip("model_signing", reason="the extra signing is not installed")
    from tests.unit.publish.test_sign import make_keys

    keys = make_keys(artifact.path.parent, "signing")
    assert run("sign", str(artifact.path), "--private-key", str(keys.private)).code == 0

    def sent(*options: str) -> list[str]:
        out = run("push", str(artifact.path), REPOSITORY, "--dry-run", "--json", *options).out
        return [file["name"] for file in json.loads(out)["files"]]

    assert "model.sig" not in sent()
    assert sent("--public-key", str(keys.public))[-1] == "model.sig"
    other = make_keys(artifact.path.parent, "other")
    result = run("push", str(artifact.path), REPOSITORY, "--public-key", str(other.public))
    assert (result.code, "Key mismatch" in result.err) == (6, True)


def test_verify_says_who_signed(run: Run, artifact: Artifact) -> None:  # noqa: F811
    pytest.importorskip("model_signing", reason="the extra signing is not installed")
    from tests.unit.publish.test_sign import make_keys

    keys = make_keys(artifact.path.parent, "signing")
    run("sign", str(artifact.path), "--private-key", str(keys.private))
    result = run("verify", str(artifact.path), "--public-key", str(keys.public))
    assert result.out == f"{artifact.path}: valid, signed by {keys.public}\n"


def test_a_signature_without_a_key_is_half_a_question(
    run: Run,  # noqa: F811
    artifact: Artifact,
) -> None:
    result = run("verify", str(artifact.path), "--signature", "model.sig")
    assert (result.code, "proves nothing without the key" in result.err) == (2, True)
