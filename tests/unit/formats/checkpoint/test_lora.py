"""A merged adapter is the one that peft merges; anything else is refused by name."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemquant.errors import CheckpointError, GemquantError, Problems, UnsupportedError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.architecture import stacked_tensors
from tests.helpers.tiny_gemma import Kind, tiny_tokenizer, write_tiny_gemma

UP = "model.layers.1.mlp.up_proj.weight"
UP_A = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
UP_B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.fixture
def folder(tiny_folders: dict[Kind, Path]) -> str:
    return str(tiny_folders["gemma2"])


def write_adapter(
    folder: Path, *, tensors: dict[str, torch.Tensor] | None = None, **config: Any
) -> str:
    """A rank-2 adapter of one linear; ``config`` changes or adds keys."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    own = {
        UP_A: torch.randn(2, 128, generator=generator),
        UP_B: torch.randn(384, 2, generator=generator),
    }
    save_file(own if tensors is None else tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def refusal(folder: str, adapter: str) -> GemquantError:
    with pytest.raises(GemquantError) as caught:
        open_checkpoint(folder, lora=(adapter,))
    return caught.value


# peft reads an attribute that transformers is about to rename.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Model (has|with) .tie_word_embeddings=True.:UserWarning")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"lora_alpha": 12}, id="plain"),
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param(
            {
                "rank_pattern": {"q_proj": 3, "model.layers.0.mlp.up_proj": 2},
                "alpha_pattern": {
                    "^model.layers.1.self_attn.q_proj": 40,
                    "^up_proj": 70,  # anchored: no whole name
                    "up_proj": 5,
                },
            },
            id="patterns",
        ),
        pytest.param(
            {
                "rank_pattern": {r"layers\.[01]\.self_attn\.q_proj": 2},
                "alpha_pattern": {r".*mlp\.(up|down)_proj": 40},
            },
            id="expressions",
        ),
        pytest.param({"use_dora": True, "lora_alpha": 3}, id="dora"),
        pytest.param({"bias": "all"}, id="bias"),
        pytest.param({"bias": "lora_only"}, id="bias-of-adapted"),
        pytest.param({"modules_to_save": ["input_layernorm"]}, id="norms"),
        pytest.param({"modules_to_save": ["embed_tokens", "lm_head"]}, id="modules"),
        pytest.param({"trainable_token_indices": {"embed_tokens": [4, 9]}}, id="tokens"),
        pytest.param(
            {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, id="tied-modules"
        ),
        pytest.param(
            {"target_modules": r".*\.layers\.[02]\..*(q|up)_proj"}, id="target-expression"
        ),
    ],
)
def test_the_merge_equals_pefts(
    tmp_path: Path, generation: Kind, tiny_folder: Path, settings: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(
            **{"r": 4, "target_modules": targets, "init_lora_weights": False, **settings}
        ),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:  # as training would
            parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload().state_dict()
    checkpoint = open_checkpoint(str(tiny_folder), lora=(str(tmp_path / "adapter"),))
    for name in checkpoint.names():
        ours = checkpoint.tensor(name, torch.float32)
        assert torch.allclose(ours, merged[name], rtol=0, atol=1e-5), name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"exclude_modules": ["o_proj"], "lora_alpha": -4}, id="excluded"),
        pytest.param({"layers_to_transform": [1], "layers_pattern": "layers"}, id="layers"),
        pytest.param({"use_dora": True, "use_rslora": True}, id="dora-rslora"),
        pytest.param({"modules_to_save": ["down_proj"], "target_modules": ["q_proj"]}, id="saved"),
    ],
)
def test_of_float32_weights_the_merge_is_pefts_to_a_hundred_thousandth(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = write_tiny_gemma(tmp_path / "base", "gemma3_text")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {n: t.float() + 0.01 * torch.randn(t.shape) for n, t in tensors.items()},
        folder / "model.safetensors",
    )
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chosen = {"target_modules": ["q_proj", "o_proj", "up_proj"], "init_lora_weights": False}
    model = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, **chosen, **settings}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.double().merge_and_unload().state_dict()
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "adapter"),))
    for name in checkpoint.names():
        error = (checkpoint.tensor(name, torch.float32).double() - merged[name]).abs().max()
        assert error <= 1e-5 * merged[name].abs().max(), name


@pytest.mark.filterwarnings("ignore:Model (has|with) .tie_word_embeddings=True.:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"target_modules": ["q_proj", "lm_head"]}, id="head"),
        pytest.param({"target_modules": ["q_proj", "embed_tokens"]}, id="embedding"),
        pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, id="module"),
    ],
)
def test_a_head_and_embedding_part_as_in_the_adapted_model(
    tmp_path: Path, tied: bool, settings: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = write_tiny_gemma(tmp_path / "m", "gemma3_text", tied=tied)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, init_lora_weights=False, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "adapter"),))
    assert checkpoint.config["tie_word_embeddings"] is False
    untied = AutoModelForCausalLM.from_config(base.config, dtype=torch.float32)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(torch.empty_like(untied.lm_head.weight))
    names = checkpoint.names()
    untied.load_state_dict({n: checkpoint.tensor(n, torch.float32) for n in names}, strict=False)
    ids = torch.tensor([[2, 30, 31, 32, 300, 301, 40]])
    with torch.no_grad():
        expected, actual = model.eval()(ids).logits, untied.eval()(ids).logits
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_rows_of_a_merged_tensor_are_its_rows(folder: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder, lora=(write_adapter(tmp_path / "a"),))
    assert torch.equal(checkpoint.rows(UP, 7, 30), checkpoint.tensor(UP)[7:30])


def test_a_merged_tensor_is_declared_float32(folder: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder, lora=(write_adapter(tmp_path / "a"),))
    assert checkpoint.stored_dtype(UP) == torch.float32
    assert checkpoint.stored_dtype("model.norm.weight") == torch.bfloat16


def test_an_adapter_of_the_multimodal_model_is_understood(
    tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    module = "base_model.model.model.language_model.layers.1.mlp.up_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(2, 128)}
    tensors[f"{module}.lora_B.weight"] = torch.ones(384, 2)
    adapter = write_adapter(tmp_path / "a", tensors=tensors)
    plain = open_checkpoint(str(tiny_folders["gemma3"]))
    merged = open_checkpoint(str(tiny_folders["gemma3"]), lora=(adapter,))
    difference = merged.tensor(UP) - plain.tensor(UP, torch.float32)
    assert torch.allclose(difference, torch.tensor(6.0), atol=1e-5)


@pytest.mark.parametrize("pattern", ["^{}", "{}", "language_model.layers.0.self_attn.q_proj"])
def test_patterns_match_the_names_in_the_adapter(
    tiny_folders: dict[Kind, Path], tmp_path: Path, pattern: str
) -> None:
    module = "model.language_model.layers.0.self_attn.q_proj"
    tensors = {
        f"base_model.model.{module}.lora_A.weight": torch.ones(2, 128),
        f"base_model.model.{module}.lora_B.weight": torch.ones(256, 2),
        "base_model.model.model.vision_tower.x.q_proj.lora_A.weight": torch.ones(2, 16),
    }
    patterns = {pattern.format(module): 64}
    adapter = write_adapter(tmp_path / "a", tensors=tensors, alpha_pattern=patterns)
    plain = open_checkpoint(str(tiny_folders["gemma3"]))
    merged = open_checkpoint(str(tiny_folders["gemma3"]), lora=(adapter,))
    name = "model.layers.0.self_attn.q_proj.weight"
    difference = merged.tensor(name) - plain.tensor(name, torch.float32)
    assert torch.allclose(difference, torch.tensor(64.0), atol=1e-4)


def test_the_digest_covers_the_adapter(folder: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    digest = open_checkpoint(folder, lora=(adapter,)).source_digest()
    assert sorted(digest) == [
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
        "model.safetensors",
    ]
    content = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    assert digest["lora/adapter_model.safetensors"] == hashlib.sha256(content).hexdigest()


def test_an_adapter_of_another_model_lists_its_modules(folder: str, tmp_path: Path) -> None:
    foreign = "base_model.model.model.layers.77.mlp.fc1"
    tensors = {f"{foreign}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    adapter = write_adapter(tmp_path / "a", tensors=tensors, base_model_name_or_path="other/model")
    error = refusal(folder, adapter)
    assert isinstance(error, CheckpointError)
    assert "1 modules are not in this model: model.layers.77.mlp.fc1.weight" in error.message
    assert error.hint == "The adapter was made for other/model."


def test_an_adapter_of_another_size_is_refused_with_both_shapes(
    folder: str, tmp_path: Path
) -> None:
    tensors = {UP_A: torch.ones(2, 64), UP_B: torch.ones(384, 2)}
    error = refusal(folder, write_adapter(tmp_path / "a", tensors=tensors))
    assert f"{UP}: lora_A has shape (2, 64); rank 2 and this model need (2, 128)" in error.message


def test_another_base_models_name_alone_is_a_warning(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path="other/model")
    with caplog.at_level(logging.WARNING):
        open_checkpoint(folder, lora=(adapter,))
    assert "The adapter names other/model as its base" in caplog.text


def test_half_an_update_is_refused(folder: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", tensors={UP_A: torch.ones(2, 128)})
    assert f"{UP}: lora_B is missing" in refusal(folder, adapter).message


def test_tensors_that_are_no_update_are_listed(folder: str, tmp_path: Path) -> None:
    stranger = "base_model.model.model.layers.1.mlp.up_proj.lora_C"
    tensors = {
        UP_A: torch.ones(2, 128), UP_B: torch.ones(384, 2), stranger: torch.ones(2, 2),
    }  # fmt: skip
    error = refusal(folder, write_adapter(tmp_path / "a", tensors=tensors))
    assert isinstance(error, UnsupportedError)
    assert f"are not LoRA weights of linears: {stranger}" in error.message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"peft_type": "IA3"}, "peft_type 'IA3'", id="kind"),
        pytest.param({"bias": "some"}, "bias 'some'", id="bias"),
        pytest.param({"use_dora": True}, "lora_magnitude_vector is missing", id="dora"),
        pytest.param({"lora_bias": True}, "lora_bias True", id="lora-bias"),
        pytest.param({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'", id="pissa"),
        pytest.param({"layer_replication": [[0, 2]]}, "layer_replication", id="replication"),
        pytest.param({"rank_pattern": {"(a+)+$": 2}}, r"rank_pattern '(a+)+$'", id="expression"),
        pytest.param({"r": 0}, "r 0: must be from 1", id="rank"),
        pytest.param({"lora_alpha": "x"}, "lora_alpha 'x'", id="alpha"),
    ],
)
def test_what_is_more_than_a_low_rank_update_is_refused(
    folder: str, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    assert words in refusal(folder, write_adapter(tmp_path / "a", **settings)).message


def test_trained_biases_name_no_merge_that_peft_refuses(folder: str, tmp_path: Path) -> None:
    error = refusal(folder, write_adapter(tmp_path / "a", lora_bias=True))
    assert error.hint == "peft cannot merge it into Gemma either: train with lora_bias=False."


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"])
def test_what_no_weights_can_replace_names_the_call_that_runs_it(
    folder: str, tmp_path: Path, kind: str
) -> None:
    adapter = write_adapter(tmp_path / "a", peft_type=kind)
    error = refusal(folder, adapter)
    assert error.message == f"{adapter}: peft_type {kind}: no change of weights can replace it."
    assert error.hint == (
        "Train a LoRA instead, or run it with peft: from peft import AutoPeftModelForCausalLM; "
        f'AutoPeftModelForCausalLM.from_pretrained("{adapter}")'
    )


def test_all_unsupported_settings_come_at_once(folder: str, tmp_path: Path) -> None:
    error = refusal(folder, write_adapter(tmp_path / "a", lora_bias=True, bias="x", r=0))
    assert isinstance(error, Problems)
    assert len(error.problems) == 3


def test_a_folder_that_is_no_adapter_is_refused(folder: str, tmp_path: Path) -> None:
    assert "adapter_config.json is missing" in refusal(folder, str(tmp_path)).message


def test_a_pickled_adapter_is_refused(folder: str, tmp_path: Path) -> None:
    adapter = Path(write_adapter(tmp_path / "a"))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "only pickled weights" in refusal(folder, str(adapter)).message


def test_nan_in_an_adapter_is_named(folder: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[UP_A][0, 0] = float("nan")
    save_file(tensors, path)
    assert f"{UP_A}: 1 of 256 values are NaN" in refusal(folder, adapter).message


def test_problems_of_base_and_adapter_come_together(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma2")
    (folder / "tokenizer.json").unlink()
    error = refusal(str(folder), write_adapter(tmp_path / "a", bias="x"))
    assert "tokenizer.json is missing" in str(error)
    assert "bias 'x'" in str(error)


# ---------------------------------------------------------------- several, grown vocabularies


QUIET = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Model (has|with) .tie_word_embeddings=True.:UserWarning",
    "ignore:Input and output embeddings are no longer tied:UserWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Could not find a config file:UserWarning",
    "ignore:You have requested `ensure_weight_tying`, but no tied:UserWarning",
)


def trained_adapter(base: Any, folder: Path, *, seed: int = 1, **settings: Any) -> Any:
    """The adapted model, whose adapter was changed as training would, and saved."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "up_proj"], **settings}
    model = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def loaded(folder: Path | str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(checkpoint: Checkpoint, base_config: Any) -> torch.Tensor:
    """transformers' logits with the checkpoint's tensors."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(base_config)
    config.vocab_size = checkpoint.config["vocab_size"]
    config.tie_word_embeddings = checkpoint.config["tie_word_embeddings"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = {name: checkpoint.tensor(name, torch.float32) for name in checkpoint.names()}
    assert model.load_state_dict(tensors, strict=False).unexpected_keys == []
    with torch.no_grad():
        return model.eval()(IDS).logits


IDS = torch.tensor([[2, 30, 31, 4, 9, 300, 301, 40]])


@QUIET
@pytest.mark.parametrize(
    "second",
    [
        pytest.param({"use_rslora": True}, id="plain"),
        pytest.param({"use_dora": True}, id="dora"),
        pytest.param({"modules_to_save": ["embed_tokens", "lm_head"]}, id="modules"),
        pytest.param({"trainable_token_indices": [4, 9]}, id="tokens"),
    ],
)
def test_several_adapters_equal_pefts_merges_in_turn(
    tmp_path: Path, tiny_folders: dict[Kind, Path], second: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    folder = tiny_folders["gemma3_text"]
    trained_adapter(loaded(folder), tmp_path / "a")
    trained_adapter(loaded(folder), tmp_path / "b", seed=2, **second)
    model = loaded(folder)
    for name in ("a", "b"):
        model = peft.PeftModel.from_pretrained(model, tmp_path / name).merge_and_unload()
    merged = model.state_dict()
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "a"), str(tmp_path / "b")))
    for name in checkpoint.names():
        ours = checkpoint.tensor(name, torch.float32)
        assert torch.allclose(ours, merged[name], rtol=0, atol=1e-5), name


@QUIET
def test_weights_equal_pefts_concatenated_combination(
    tmp_path: Path, tiny_folders: dict[Kind, Path]
) -> None:
    peft = pytest.importorskip("peft")
    folder = tiny_folders["gemma2"]
    trained_adapter(loaded(folder), tmp_path / "a")
    trained_adapter(loaded(folder), tmp_path / "b", seed=2, r=2)
    model = peft.PeftModel.from_pretrained(loaded(folder), tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [1.0, 0.25], "both", combination_type="cat")
    model.set_adapter("both")
    merged = model.merge_and_unload().state_dict()
    given = (str(tmp_path / "a"), f"{tmp_path / 'b'}=0.25")
    checkpoint = open_checkpoint(str(folder), lora=given)
    for name in checkpoint.names():
        ours = checkpoint.tensor(name, torch.float32)
        assert torch.allclose(ours, merged[name], rtol=0, atol=1e-5), name


def test_files_of_several_adapters_are_numbered(folder: str, tmp_path: Path) -> None:
    adapters = (write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b"))
    assert sorted(open_checkpoint(folder, lora=adapters).source_digest()) == [
        "lora/1/adapter_config.json",
        "lora/1/adapter_model.safetensors",
        "lora/2/adapter_config.json",
        "lora/2/adapter_model.safetensors",
        "model.safetensors",
    ]


def test_a_weight_of_whole_matrices_is_refused(folder: str, tmp_path: Path) -> None:
    tensors = {"base_model.model.model.norm.weight": torch.ones(128)}
    adapter = write_adapter(tmp_path / "a", tensors=tensors)
    assert (
        "weight 0.5: the adapter holds whole weights" in refusal(folder, f"{adapter}=0.5").message
    )


def test_a_weight_must_be_finite(folder: str, tmp_path: Path) -> None:
    message = refusal(folder, f"{write_adapter(tmp_path / 'a')}=inf").message
    assert message.endswith("a=inf: the weight must be finite.")


GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"
MULTIMODAL = "model.language_model"


# peft looks for modules of that name only, and takes the pattern nevertheless.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did:RuntimeWarning")
@QUIET
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"target_parameters": [GATE_UP, DOWN]}, id="both"),
        pytest.param({"target_parameters": [DOWN], "use_rslora": True}, id="one"),
        pytest.param(
            {"target_parameters": [f"{MULTIMODAL}.layers.1.{GATE_UP}", DOWN]}, id="of-a-layer"
        ),
        pytest.param(
            {
                "target_parameters": [GATE_UP, DOWN],
                "rank_pattern": {GATE_UP: 2},
                "alpha_pattern": {"layers.1.experts.down_proj": 40},
            },
            id="patterns",
        ),
    ],
)
def test_an_adapter_of_experts_is_merged_expert_by_expert_as_peft_merges_the_stack(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma4_moe", towers=False)
    model = trained_adapter(loaded(folder), tmp_path / "a", lora_alpha=6, **settings)
    tensors = model.merge_and_unload().state_dict()
    merged = {name.replace(MULTIMODAL, "model"): tensor for name, tensor in tensors.items()}
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "a"),))
    stacks = stacked_tensors(checkpoint.config)
    for name in checkpoint.names():
        if ".experts." not in name:
            ours = checkpoint.tensor(name, torch.float32)
            assert torch.allclose(ours, merged[name], rtol=0, atol=1e-5), name
    for name, stack in stacks.items():
        ours = torch.cat([checkpoint.tensor(part, torch.float32) for part in stack.parts])
        assert torch.allclose(ours.view(stack.shape), merged[name], rtol=0, atol=1e-5), name


def expert_adapter(folder: Path, **config: Any) -> tuple[str, torch.Tensor, torch.Tensor]:
    """An adapter of one layer's down_proj as peft before 0.19 stores it, and its factors."""
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(8, *shape, generator=generator) for shape in ((2, 64), (128, 2)))
    tensors = {
        "base_model.model.model.layers.1.experts.lora_A.weight": b.mT.reshape(16, 128),
        "base_model.model.model.layers.1.experts.lora_B.weight": a.permute(2, 1, 0).reshape(64, 16),
    }
    adapter = write_adapter(
        folder, tensors=tensors, **{"target_parameters": [f"layers.1.{DOWN}"], **config}
    )
    return adapter, a, b


def test_an_adapter_of_experts_of_an_earlier_peft_has_outputs_before_inputs(tmp_path: Path) -> None:
    folder = str(write_tiny_gemma(tmp_path / "m", "gemma4_moe", dtype=torch.float32))
    adapter, a, b = expert_adapter(tmp_path / "a")
    adapted, plain = open_checkpoint(folder, lora=(f"{adapter}=0.5",)), open_checkpoint(folder)
    for expert in (0, 7):
        name = f"model.layers.1.experts.{expert}.down_proj.weight"
        added = 0.5 * 3 * b[expert] @ a[expert]
        assert torch.allclose(adapted.tensor(name), plain.tensor(name) + added, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_parameters": [DOWN]}, "model.layers.0.experts.down_proj: lora_A is missing"),
        ({"r": 3}, "down_proj: lora_A has shape (16, 128); rank 3 and this model need (24, 64)"),
        ({"target_parameters": "x"}, "target_parameters: must be a list of names"),
        ({"target_parameters": []}, "not in this model: model.layers.1.experts.weight"),
        (
            {"target_parameters": [f"layers.1.{DOWN}", "layers.0.router.proj.weight"]},
            "read are stacks of experts, and not model.layers.0.router.proj.weight",
        ),
    ],
)
def test_an_adapter_of_experts_that_does_not_fit_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    folder = str(write_tiny_gemma(tmp_path / "m", "gemma4_moe"))
    adapter, *_ = expert_adapter(tmp_path / "a", **settings)
    error = refusal(folder, adapter)
    errors = error.problems if isinstance(error, Problems) else [error]
    assert any(words in each.message for each in errors)


def test_nan_in_an_adapter_of_experts_is_named(tmp_path: Path) -> None:
    folder = str(write_tiny_gemma(tmp_path / "m", "gemma4_moe"))
    adapter, *_ = expert_adapter(tmp_path / "a")
    path = Path(adapter) / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][3, 4] = float("nan")
    save_file(tensors, path)
    assert f"{name}: 1 of 1024 values are NaN" in refusal(folder, adapter).message


@QUIET
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        pytest.param(5, {"modules_to_save": ["embed_tokens", "lm_head"]}, id="modules"),
        pytest.param(-7, {"modules_to_save": ["embed_tokens", "lm_head"]}, id="shrunk"),
        pytest.param(5, {"modules_to_save": ["embed_tokens"]}, id="embedding"),
        pytest.param(
            5, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, id="tied"
        ),
        pytest.param(5, {}, id="resized-alone"),
        pytest.param(5, {"trainable_token_indices": [4, 466, 467]}, id="tokens"),
    ],
)
def test_an_adapter_of_a_resized_vocabulary_is_merged_with_its_rows(
    tmp_path: Path, tied: bool, rows: int, settings: dict[str, Any]
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3_text", tied=tied)
    base = loaded(folder)
    size = base.config.vocab_size + rows
    base.resize_token_embeddings(size)
    model = trained_adapter(base, tmp_path / "a", **settings)
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "a"),))
    assert checkpoint.shape("model.embed_tokens.weight") == (size, 128)
    with torch.no_grad():
        expected = model.eval()(IDS).logits
    assert torch.allclose(logits(checkpoint, base.config), expected, rtol=1e-4, atol=1e-3)
    merged = model.merge_and_unload().state_dict()
    for name in checkpoint.names():
        ours = checkpoint.tensor(name, torch.float32)
        assert torch.allclose(ours, merged[name], rtol=0, atol=1e-5), name


@QUIET
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_lora_of_one_of_two_resized_tied_matrices_leaves_the_other_as_it_was_resized(
    tmp_path: Path, target: str
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3_text")
    base = loaded(folder)
    base.resize_token_embeddings(470)
    model = trained_adapter(base, tmp_path / "a", target_modules=["q_proj", target])
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "a"),))
    with torch.no_grad():
        expected = model.eval()(IDS).logits
    assert torch.allclose(logits(checkpoint, base.config), expected, rtol=1e-4, atol=1e-3)


@QUIET
def test_rows_of_the_head_that_are_nowhere_are_refused_with_pefts_call(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3_text", tied=False)
    base = loaded(folder)
    base.resize_token_embeddings(470)
    trained_adapter(base, tmp_path / "a", target_modules=["embed_tokens"])
    error = refusal(str(folder), str(tmp_path / "a"))
    assert "from 465 to 470 rows, and the adapter does not hold those of lm_head" in error.message
    assert "base.resize_token_embeddings(470); PeftModel.from_pretrained(base, " in str(error.hint)


@QUIET
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"trainable_token_indices": {"embed_tokens": [4, 9], "lm_head": [30]}}, id="t"
        ),
        pytest.param({"target_modules": ["embed_tokens"], "use_dora": True}, id="embedding-dora"),
        pytest.param({"target_modules": ["lm_head"], "use_dora": True}, id="head-dora"),
    ],
)
def test_rows_and_dora_of_head_and_embedding_compute_as_the_adapted_model(
    tmp_path: Path, tied: bool, settings: dict[str, Any]
) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3_text", tied=tied)
    base = loaded(folder)
    model = trained_adapter(base, tmp_path / "a", **settings)
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "a"),))
    with torch.no_grad():
        expected = model.eval()(IDS).logits
    assert torch.allclose(logits(checkpoint, base.config), expected, rtol=1e-4, atol=1e-3)


@QUIET
def test_tokens_that_were_trained_alone_are_merged(
    tmp_path: Path, tiny_folders: dict[Kind, Path]
) -> None:
    peft = pytest.importorskip("peft")
    folder = tiny_folders["gemma2"]
    config = peft.TrainableTokensConfig(token_indices=[4, 9], init_weights=False)
    model = peft.get_peft_model(loaded(folder), config)
    model.save_pretrained(tmp_path / "a")
    merged = model.merge_and_unload().state_dict()
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "a"),))
    name = "model.embed_tokens.weight"
    assert torch.equal(checkpoint.tensor(name, torch.float32), merged[name])
    assert checkpoint.config["tie_word_embeddings"] is True


def test_a_resized_vocabulary_brings_its_tokenizer(tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "m", "gemma3_text")
    size = 466
    rows = torch.randn(size, 128)
    tensors = {"base_model.model.model.embed_tokens.weight": rows}
    tensors["base_model.model.lm_head.weight"] = rows.clone()
    adapter = write_adapter(tmp_path / "a", tensors=tensors)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["<tool>"])
    tokenizer.save(str(tmp_path / "a" / "tokenizer.json"))
    checkpoint = open_checkpoint(str(folder), lora=(adapter,))
    assert checkpoint.tokenizer().token_to_id("<tool>") == 465
    assert checkpoint.shape("model.embed_tokens.weight") == (466, 128)


# ---------------------------------------------------------------- mlx-lm


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("keys", [["self_attn.q_proj", "mlp.down_proj"], ["model.embed_tokens"]])
def test_an_adapter_of_mlx_lm_equals_its_fusion(tmp_path: Path, kind: str, keys: list[str]) -> None:
    mlx = pytest.importorskip("mlx.core")
    pytest.importorskip("mlx_lm")
    import numpy as np
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
    from mlx_lm.utils import load_model

    folder = write_tiny_gemma(tmp_path / "m", "gemma2", dtype=torch.float32)
    model, _ = load_model(folder)
    parameters = {"rank": 3, "scale": 2.5, "dropout": 0.0, "keys": keys, "alpha": 99}
    settings = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    mlx.random.seed(1)
    factors = {
        name: mlx.random.normal(value.shape) * 0.1 + (name.endswith(".m") and value)
        for name, value in tree_flatten(model.parameters())
        if name.endswith((".lora_a", ".lora_b", ".m"))
    }
    (tmp_path / "a").mkdir()
    mlx.save_safetensors(str(tmp_path / "a" / "adapters.safetensors"), factors)
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings))
    fresh, _ = load_model(folder)
    fused = load_adapters(fresh, str(tmp_path / "a"))
    modules = [(n, m.fuse()) for n, m in fused.named_modules() if hasattr(m, "fuse")]
    fused.update_modules(tree_unflatten(modules))
    checkpoint = open_checkpoint(str(folder), lora=(str(tmp_path / "a"),))
    assert checkpoint.config["tie_word_embeddings"] is True
    for name, value in tree_flatten(fused.parameters()):
        ours = checkpoint.tensor(name, torch.float32)
        assert torch.allclose(ours, torch.from_numpy(np.array(value)), rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fine_tune_type": "lora", "lora_parameters": {"rank": 2}}, "scale None"),
        ({"fine_tune_type": "odd"}, "fine_tune_type 'odd'"),
    ],
)
def test_an_adapter_of_mlx_lm_without_its_scale_names_the_command_that_fuses_it(
    folder: str, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    write_adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapters.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**settings, "model": "x/y"}))
    error = refusal(folder, str(tmp_path / "a"))
    assert words in error.message
    assert f"mlx_lm.fuse --model x/y --adapter-path {tmp_path / 'a'}" in str(error.hint)


# ---------------------------------------------------------------- names of the base


@pytest.mark.parametrize(
    ("named", "warned"),
    [
        pytest.param("{folder}", False, id="path"),
        pytest.param("{folder}/../gemma2/", False, id="unresolved"),
        pytest.param("/workspace/on/another/machine/gemma2", False, id="elsewhere"),
        pytest.param("{other}/gemma2", True, id="another-folder-of-the-name"),
        pytest.param("google/gemma-7b", True, id="another"),
    ],
)
def test_paths_of_the_base_are_compared_resolved(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str, warned: bool
) -> None:
    (tmp_path / "gemma2").mkdir()
    base = named.format(folder=folder, other=tmp_path)
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path=base)
    with caplog.at_level(logging.WARNING):
        open_checkpoint(folder, lora=(adapter,))
    assert ("as its base, not" in caplog.text) is warned


@pytest.mark.parametrize(
    ("start", "call"),
    [
        ("pissa", "PeftModel.from_pretrained(base, "),
        ("olora", "PeftModel.from_pretrained(base, "),
        ("pissa_niter_4", "Merge it in the program that trained it: model.merge_and_unload()"),
        ("loftq", "Merge it in the program that trained it: model.merge_and_unload()"),
    ],
)
def test_what_peft_cannot_repeat_is_merged_where_it_was_trained(
    folder: str, tmp_path: Path, start: str, call: str
) -> None:
    adapter = write_adapter(tmp_path / "a", init_lora_weights=start)
    assert call in str(refusal(folder, adapter).hint)


def test_a_model_given_as_an_adapter_is_named(folder: str) -> None:
    assert refusal(folder, folder).message == f"{folder} is a model, not an adapter."


def test_checkpoints_of_a_training_name_the_last_adapter(folder: str, tmp_path: Path) -> None:
    for step in (1000, 500):
        write_adapter(tmp_path / f"checkpoint-{step}")
    hint = f"Give one: --lora {tmp_path / 'checkpoint-1000'}"
    assert refusal(folder, str(tmp_path)).hint == hint


def test_a_file_given_as_an_adapter_names_its_folder(folder: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    error = refusal(folder, f"{adapter}/adapter_model.safetensors")
    assert error.hint == f"Give its folder: --lora {adapter}"
    (tmp_path / "a.gguf").touch()
    assert "llama.cpp applies such a file" in str(refusal(folder, f"{tmp_path}/a.gguf").hint)


@QUIET
def test_the_call_of_peft_in_a_hint_makes_a_folder_that_opens(
    tmp_path: Path, tiny_folders: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    folder = tiny_folders["gemma2"]
    config = peft.IA3Config(
        target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"
    )
    peft.get_peft_model(loaded(folder), config).save_pretrained(tmp_path / "a")
    hint = str(refusal(str(folder), str(tmp_path / "a")).hint)
    call = hint.partition("give that folder: ")[2].partition("; copy")[0]
    monkeypatch.chdir(tmp_path)
    exec(call, {})
    shutil.copy(folder / "tokenizer.json", tmp_path / "FOLDER")
    assert open_checkpoint(str(tmp_path / "FOLDER")).config["model_type"] == "gemma2"
