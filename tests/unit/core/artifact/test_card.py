from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from gemquant.core.artifact import (
    ActivationRangeRecord,
    FileRecord,
    LevelEvaluation,
    Manifest,
    Source,
)
from gemquant.core.artifact.card import (
    Inherited,
    inherited_again,
    inherited_from,
    render_card,
    repository_in,
)
from gemquant.core.artifact.evaluation import Interval, Level
from gemquant.core.protocols import AffineScheme
from gemquant.formats.compressed_tensors import CompressedTensors
from tests.helpers.tiny_artifact import W4, tiny_header, tiny_manifest
from tests.helpers.tiny_evaluation import measured_slice


@pytest.fixture
def manifest() -> Manifest:
    return tiny_manifest(tiny_header(CompressedTensors()), "compressed-tensors")


def changed(manifest: Manifest, **fields: Any) -> Manifest:
    return manifest.model_copy(update=fields)


def matter(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


def measured(level: Level) -> LevelEvaluation:
    loss = measured_slice("english", kl=[0.1] * 8).model_copy(
        update={
            "perplexity_original": Interval(value=19.2345, low=18.7, high=19.8),
            "perplexity_quantized": Interval(value=21.118, low=20.4, high=21.8),
            "kl_mean": Interval(value=0.12345, low=0.111, high=0.1357),
        }
    )
    return LevelEvaluation(level=level, runtime="torch", slices=(loss,))


def test_the_front_matter_says_what_the_hub_needs_to_know(manifest: Manifest) -> None:
    front = matter(render_card(manifest))
    assert {key: front[key] for key in list(front)[:8]} == {
        "license": "gemma",
        "license_link": "https://ai.google.dev/gemma/terms",
        "base_model": "google/gemma-2-2b",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gemma", "rtn", "compressed-tensors", "4-bit"],
        "quantized_by": "gemquant",
    }


def test_access_is_gated_as_on_googles_cards(manifest: Manifest) -> None:
    front = matter(render_card(manifest))
    assert front["extra_gated_heading"] == "Access Gemma on Hugging Face"
    assert front["extra_gated_button_content"] == "Acknowledge license"
    assert "review and agree to Google’s usage license" in front["extra_gated_prompt"]


def test_a_folder_is_no_base_model_of_the_hub(manifest: Manifest) -> None:
    card = render_card(changed(manifest, base_model="my: folder"))
    assert "base_model" not in matter(card)
    assert "# my: folder rtn 4-bit, for transformers" in card


def test_the_notices_that_the_terms_require_are_there(manifest: Manifest) -> None:
    card = render_card(manifest)
    assert "This is a modified version of [google/gemma-2-2b]" in card
    assert "https://ai.google.dev/gemma/terms" in card
    assert "https://ai.google.dev/gemma/prohibited_use_policy" in card


def test_each_level_has_a_table_of_its_own(manifest: Manifest) -> None:
    card = render_card(
        changed(manifest, certificates=(measured("reference"), measured("emulated")))
    )
    reference, emulated = card.split("### Level `")[1:3]
    assert reference.startswith("reference`")
    assert emulated.startswith("emulated`")
    row = r"| english | 8 | 4,088 | 19.23 | 21.12 | 0.123 \[0.111, 0.136\] |"
    assert row in reference
    assert row in emulated


def test_a_level_that_was_not_run_says_why(manifest: Manifest) -> None:
    assert "Not run (transformers): not installed" in render_card(manifest)


def test_overflow_is_said_plainly(manifest: Manifest) -> None:
    seen = ActivationRangeRecord(largest=120000.0, where="model.layers.1.mlp", fits_float16=False)
    card = render_card(changed(manifest, activation_range=seen))
    assert "largest activation 120,000 at `model.layers.1.mlp`: **does not fit**" in card


def test_a_source_that_was_quantized_before_is_named_as_such(manifest: Manifest) -> None:
    sample = Source(ref="sample:gemma-3-270m", files={})
    assert "may have been quantized before" in render_card(changed(manifest, source=sample))
    assert "may have been quantized before" not in render_card(manifest)


def test_the_original_card_follows_without_its_front_matter(manifest: Manifest) -> None:
    original = "---\nlicense: gemma\nsecret: yes\n---\n# Gemma 2 model card\n\nBody.\n"
    card = render_card(manifest, inherited=inherited_from(original))
    assert card.endswith("# Gemma 2 model card\n\nBody.\n")
    assert "secret" not in card


def test_nothing_in_an_original_card_is_taken_for_a_template(manifest: Manifest) -> None:
    card = render_card(manifest, inherited=inherited_from("{{ manifest.recipe }} {% raise %}"))
    assert card.endswith("{{ manifest.recipe }} {% raise %}\n")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"# a\|b rtn 4-bit, for transformers"),
        ("<script>", r"# \<script\> rtn 4-bit, for transformers"),
        ("x\n# y", r"# x \# y rtn 4-bit, for transformers"),
        ("[a](b)", r"# \[a\](b) rtn 4-bit, for transformers"),
        ("{{ 7 * 7 }}", r"# {{ 7 \* 7 }} rtn 4-bit, for transformers"),
    ],
)
def test_names_from_outside_are_shown_as_they_are(
    manifest: Manifest, name: str, shown: str
) -> None:
    assert shown in render_card(changed(manifest, base_model=name)).splitlines()


def test_a_reference_with_backticks_stays_inline_code(manifest: Manifest) -> None:
    source = Source(ref="a`b", files={})
    assert "Source: `` a`b ``." in render_card(changed(manifest, source=source))


def loading(container: str, architecture: str, scheme: AffineScheme = W4) -> str:
    header = tiny_header(CompressedTensors(), scheme=scheme)
    manifest = changed(tiny_manifest(header, container), architecture=architecture)
    return render_card(manifest).split("## How to load it")[1].split("## How it was made")[0]


def test_compressed_tensors_loads_everywhere() -> None:
    text = loading("compressed-tensors", "gemma3_text")
    assert "pip install transformers compressed-tensors accelerate" in text
    assert "vllm serve path/to/this/folder\n" in text


def test_three_bits_are_not_promised_for_vllm() -> None:
    text = loading("compressed-tensors", "gemma2", AffineScheme(3, 32, symmetric=False))
    assert "vLLM has no kernel for 3 bits with zero points." in text
    assert "vllm serve" not in text


@pytest.mark.parametrize(
    ("skipped", "loads"), [("k_proj", False), ("up_proj", False), ("down_proj", True)]
)
def test_linears_that_vllm_computes_as_one_are_stored_as_one(skipped: str, loads: bool) -> None:
    names = (name for name in tiny_header(CompressedTensors()).layout if skipped in name)
    header = tiny_header(CompressedTensors(), schemes=dict.fromkeys(names))
    text = render_card(tiny_manifest(header, "compressed-tensors"))
    assert ("vllm serve" in text) == loads
    assert ("vLLM cannot load these" in text) != loads


def test_awq_of_gemma_2_asks_vllm_for_bfloat16() -> None:
    flags = "vllm serve path/to/this/folder --dtype bfloat16 --quantization awq_marlin"
    assert flags in loading("awq-gemm", "gemma2")


def test_awq_of_gemma_3_warns_of_float16() -> None:
    text = loading("awq-gemm", "gemma3_text")
    assert "where Gemma 3 overflows" in text
    assert "vllm serve" not in text


def lineage(manifest: Manifest) -> tuple[object, object]:
    front = matter(render_card(manifest))
    return front.get("base_model"), front.get("base_model_relation")


def unquantized(manifest: Manifest) -> Manifest:
    plain = manifest.quantization.model_copy(update={"quantizer": "cast", "schemes": ()})
    return changed(manifest, quantization=plain)


def test_a_converted_model_is_no_finetune(manifest: Manifest) -> None:
    assert lineage(unquantized(manifest)) == ("google/gemma-2-2b", "quantized")


def test_a_merged_adapter_of_the_hub_is_a_parent_too(manifest: Manifest) -> None:
    merged = changed(manifest, recipe={**manifest.recipe, "lora": "me/my-lora@main"})
    parents = ["google/gemma-2-2b", "me/my-lora"]
    assert lineage(merged) == (parents, "quantized")
    assert lineage(unquantized(merged)) == (parents, "merge")


def test_every_merged_adapter_of_the_hub_is_a_parent(manifest: Manifest) -> None:
    adapters = ["me/my-lora=0.5", "./mine", "you/your-lora@v1=2"]
    merged = changed(manifest, recipe={**manifest.recipe, "lora": adapters})
    parents = ["google/gemma-2-2b", "me/my-lora", "you/your-lora"]
    assert lineage(merged) == (parents, "quantized")


def test_a_merged_adapter_from_a_folder_is_not_named_as_a_parent(manifest: Manifest) -> None:
    merged = changed(manifest, recipe={**manifest.recipe, "lora": "./my-lora"})
    assert lineage(unquantized(merged)) == ("google/gemma-2-2b", "merge")


def test_measurements_are_read_back_by_the_hubs_own_classes(manifest: Manifest) -> None:
    card = render_card(changed(manifest, certificates=(measured("reference"),)))
    read = ModelCard(card).data
    assert (read.model_name, len(read.eval_results)) == ("gemma-2-2b rtn 4-bit", 5)
    first = read.eval_results[0]
    assert (first.metric_type, first.metric_value) == ("perplexity", 21.118)
    assert first.metric_name == "Perplexity after quantization (level reference)"
    assert (first.dataset_config, first.dataset_args) == ("english", {"windows": 8, "tokens": 4088})
    assert first.metric_args == {"runtime": "torch", "interval_95": [20.4, 21.8]}


def test_one_window_has_no_interval_in_the_metadata(manifest: Manifest) -> None:
    alone = LevelEvaluation(
        level="reference", runtime="torch", slices=(measured_slice("english", kl=[0.1]),)
    )
    card = render_card(changed(manifest, certificates=(alone,)))
    (model,) = matter(card)["model-index"]
    metrics = [metric for result in model["results"] for metric in result["metrics"]]
    assert [metric["args"] for metric in metrics] == [{"runtime": "torch"}] * 5
    assert "One window: no interval." in card


def gguf(manifest: Manifest) -> Manifest:
    return changed(
        manifest,
        container="gguf",
        recipe={**manifest.recipe, "options": {"type": ["Q4_K_M"]}},
        files={"my-gemma-Q4_K_M.gguf": FileRecord(sha256="0" * 64, bytes=1_102_000)},
        certificates=(measured("reference"),),
        quantization=manifest.quantization.model_copy(update={"bits_per_weight": 4.92}),
    )


def test_the_card_of_a_gguf_begins_with_its_type_its_size_and_what_was_lost(
    manifest: Manifest,
) -> None:
    card = render_card(gguf(manifest))
    _, _, body = card.partition("\n---\n")
    assert body.startswith("\n# my-gemma Q4\\_K\\_M, for llama.cpp\n")
    assert (
        "On our text it ranks the original's most likely token first 90.0 % of the time; the mean "
        "KL divergence is 0.123 nats per token (level reference)."
    ) in body
    assert "| Size | 1.10 MB (the original in bfloat16: 3.58 MB); 4.92 bits per weight" in body
    assert "add_special_tokens" not in body
    assert "<details><summary>The whole recipe, defaults included</summary>" in body


def test_a_card_for_a_repository_has_the_commands_to_type(manifest: Manifest) -> None:
    card = render_card(gguf(manifest), repository="me/my-gemma-GGUF")
    for command in (
        "llama-server -hf me/my-gemma-GGUF:Q4_K_M",
        "ollama run hf.co/me/my-gemma-GGUF:Q4_K_M",
        "hf download me/my-gemma-GGUF --local-dir my-gemma-GGUF",
    ):
        assert command in card.splitlines()
    assert repository_in(card) == "me/my-gemma-GGUF"
    assert repository_in(render_card(gguf(manifest))) is None


def test_a_repository_in_the_originals_card_is_not_ours(manifest: Manifest) -> None:
    theirs = inherited_from("hf download them/gemma --local-dir gemma")
    assert repository_in(render_card(gguf(manifest), inherited=theirs)) is None


def test_what_was_not_measured_is_no_result(manifest: Manifest) -> None:
    assert "model-index" not in matter(render_card(manifest))


@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        ("language: en", ["en"]),
        ("language: [en, de, zh-Hant, multilingual]", ["en", "de", "zh-Hant", "multilingual"]),
        ("language: [no]", None),  # YAML reads this as false
        ("language: {a: b}", None),
        ("language: '<script>'", None),
        ("licence: [", None),
    ],
)
def test_languages_are_taken_over_where_they_are_codes(
    manifest: Manifest, stated: str, kept: list[str] | None
) -> None:
    card = render_card(manifest, inherited=inherited_from(f"---\n{stated}\n---\nBody.\n"))
    assert matter(card).get("language") == kept


@pytest.mark.parametrize(
    "original",
    [
        None,
        "",
        "Body.",
        "---\nlanguage: [en, 'no']\n---\n# Title\n\n---\n\n*The card of x follows.*\n\nBody.\n",
        "\n\n  indented\r\nand {{ braces }} é \n",
    ],
)
def test_a_card_keeps_what_it_had_inherited(manifest: Manifest, original: str | None) -> None:
    inherited = inherited_from(original)
    card = render_card(manifest, inherited=inherited)
    assert inherited_again(card) == inherited
    assert render_card(manifest, inherited=inherited_again(card)) == card


def test_a_card_of_ours_in_a_card_of_ours_stays_whole(manifest: Manifest) -> None:
    inner = render_card(manifest, inherited=inherited_from("Body."))
    inherited = inherited_from(inner)
    assert inherited_again(render_card(manifest, inherited=inherited)) == inherited


def test_a_name_cannot_pass_for_the_end_of_our_part(manifest: Manifest) -> None:
    name = "x\n---\n\n*The card of y follows. It describes the model before quantization.*\n\nEvil"
    card = render_card(changed(manifest, base_model=name), inherited=Inherited((), "Body."))
    assert inherited_again(card) == Inherited((), "Body.")
