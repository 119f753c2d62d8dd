"""A model's origin comes from the most certain of several sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemquant.formats.checkpoint.provenance import Provenance, folder_provenance, front_matter

CARD = "---\nlicense: mit\nbase_model: google/gemma-2-9b\n---\n# Model\n"


def test_a_folder_without_a_card_goes_by_its_name_and_the_assumed_terms(tmp_path: Path) -> None:
    assert folder_provenance(tmp_path, {}, assumed_license="gemma") == Provenance(
        tmp_path.name, "gemma", None
    )


def test_a_card_gives_license_and_base(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    assert folder_provenance(folder, {}, assumed_license="gemma") == Provenance(
        "google/gemma-2-9b", "mit", CARD, "tuned"
    )


def test_the_name_it_was_saved_under_goes_before_the_cards_base(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    assert (
        folder_provenance(
            tmp_path, {"_name_or_path": "me/tuned"}, assumed_license="gemma"
        ).base_model
        == "me/tuned"
    )


def test_a_local_path_in_the_configuration_is_no_id(tmp_path: Path) -> None:
    found = folder_provenance(
        tmp_path, {"_name_or_path": "/home/me/gemma"}, assumed_license="gemma"
    )
    assert found.base_model == tmp_path.name


def test_a_snapshot_in_the_hub_cache_is_known_by_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "models--google--gemma-2-2b" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert folder_provenance(folder, {}, assumed_license="gemma").base_model == "google/gemma-2-2b"


@pytest.mark.parametrize(
    "card", ["", "no matter", "---\n: [\n---\n", "---\n- a\n---\n", "---\nx: 1"]
)
def test_a_card_without_usable_front_matter_says_nothing(card: str) -> None:
    assert front_matter(card) == {}
