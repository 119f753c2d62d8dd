"""`gemquant onnx` with the builder itself, run as a worker, and its artifacts in onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gemquant.core.protocols import PlainSpec, QuantizedSpec
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.onnx import Onnx
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.runtimes.onnx import OnnxRuntime
from gemquant.runtimes.runtime import Window
from tests.helpers.grid_gemma import write_grid_gemma
from tests.helpers.tiny_gemma import Kind, write_tiny_gemma
from tests.unit.cli.conftest import Result, Run

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FEW = "--threads 1 --seq-len 24 --eval-windows 1 --eval-slices english,code".split()
UP_PROJ = "model.layers.1.mlp.up_proj.weight"
V_PROJ = "model.layers.1.self_attn.v_proj.weight"
EOS = 1
LONG = torch.randint(3, 400, (1, 300), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def installed() -> None:
    for module in ("onnx", "onnxruntime", "onnxruntime_genai"):
        pytest.importorskip(module, reason=f"{module} is not installed")


@pytest.fixture
def build(run: Run) -> Callable[..., Result]:
    def made(model: Path, *options: str) -> Result:
        result = run("onnx", str(model), *FEW, "-o", "out", *options)
        assert result.code == 0, result.err
        return result

    return made


Build = Callable[..., Result]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_float32_logits_equal_transformers_past_the_window(
    build: Build, generation: Kind, tmp_path: Path, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    model = write_tiny_gemma(tmp_path / "model", generation, tied=tied)
    build(model, "--bits", "32", "--no-eval")
    theirs = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = theirs(LONG).logits[0, :-1]
    runner = OnnxRuntime.load(Path("out"), "onnx")
    found = torch.cat([chunk.clone() for chunk in runner.logit_chunks(LONG)])
    assert found.shape == expected.shape == (299, expected.shape[1])
    assert (found - expected).abs().max() < 1e-3


def test_the_model_passes_the_standards_own_check(build: Build, tiny_folder: Path) -> None:
    import onnx

    build(tiny_folder, "--no-eval")
    onnx.checker.check_model("out/model.onnx")


@pytest.mark.parametrize(
    ("kind", "bits", "symmetric"),
    [
        ("gemma", "4", "--no-symmetric"),
        ("gemma2", "4", "--symmetric"),
        ("gemma2", "8", "--no-symmetric"),
        ("gemma3_text", "8", "--symmetric"),
    ],
)
def test_what_is_read_back_is_what_onnxruntime_computes_with(
    build: Build,
    run: Run,
    tiny_folders: dict[Kind, Path],
    kind: Kind,
    bits: str,
    symmetric: str,
) -> None:
    options = ("--bits", bits, symmetric, "--activations", "float32", "--json")
    manifest = json.loads(build(tiny_folders[kind], *options).out)["manifest"]
    reference, native = manifest["certificates"]
    assert (reference["level"], native["level"]) == ("reference", "native")
    assert native["runtime"].startswith("onnxruntime ")
    assert abs(native["kl_from_reference"]["value"]) < 1e-4
    assert reference["slices"][0]["kl_mean"]["value"] > 1e-3
    scheme = manifest["quantization"]["schemes"][0]
    assert (scheme["bits"], scheme["group_size"]) == (int(bits), 32)
    assert scheme["symmetric"] == (symmetric == "--symmetric")
    assert run("verify", "out").code == 0


def test_codes_are_the_nearest_in_their_groups(
    build: Build, tiny_folders: dict[Kind, Path]
) -> None:
    build(tiny_folders["gemma3_text"], "--bits", "8", "--group-size", "64", "--no-eval")
    original, stored = open_checkpoint(str(tiny_folders["gemma3_text"])), Onnx().open(Path("out"))
    for name in (UP_PROJ, V_PROJ, HEAD):
        weight = original.tensor(EMBEDDING if name == HEAD else name, torch.float32)
        groups = weight.reshape(weight.shape[0], -1, 64)
        step = groups.abs().amax(-1, keepdim=True) / 128
        error = (stored.tensor(name).reshape(groups.shape) - groups).abs() / step
        # The largest of a group may be cut off at code 127; all others are rounded.
        assert error.max() <= 1.001, name
        assert (error <= 0.501).float().mean() > 1 - 1 / 64, name
    assert isinstance(stored.layout[HEAD], QuantizedSpec)
    assert isinstance(stored.layout[EMBEDDING], PlainSpec)
    assert stored.config["tie_word_embeddings"] is False
    for name in original.names():
        if len(original.shape(name)) == 1:
            assert torch.equal(stored.tensor(name), original.tensor(name, torch.float32)), name


@pytest.mark.parametrize(
    ("options", "head"),
    [((), EMBEDDING), (("--no-symmetric",), HEAD), (("--bits", "8"), HEAD)],
    ids=["symmetric", "zero points", "8 bits"],
)
def test_codes_of_a_grid_are_carried_over(
    build: Build, tmp_path: Path, options: tuple[str, ...], head: str
) -> None:
    model = write_grid_gemma(tmp_path / "model", "gemma3_text")
    result = build(model, "--qat", "on", *options, "--activations", "float32", "--json")
    original, stored = open_checkpoint(str(model)), Onnx().open(Path("out"))
    for name in original.names():
        if len(original.shape(name)) == 2:
            weight = stored.tensor(head if name == EMBEDDING else name, torch.bfloat16)
            assert torch.equal(weight, original.tensor(name)), name
    manifest = json.loads(result.out)["manifest"]
    assert len(manifest["grid"]["carried"]) == manifest["grid"]["on_grid"] == 50
    assert manifest["certificates"][1]["kl_from_reference"]["value"] < 1e-5


def test_qat_on_refuses_a_group_that_holds_no_grid(run: Run, tmp_path: Path) -> None:
    model = write_grid_gemma(tmp_path / "model", "gemma3_text")
    result = run("onnx", str(model), "--qat", "on", "--group-size", "64", "-o", "out")
    assert result.code == 2
    assert "hint: Use --group-size 32" in result.err


def test_a_tied_table_is_quantized_once(build: Build, tiny_folders: dict[Kind, Path]) -> None:
    build(tiny_folders["gemma2"], "--no-eval")
    stored = Onnx().open(Path("out"))
    assert stored.config["tie_word_embeddings"] is True
    assert isinstance(stored.layout[EMBEDDING], QuantizedSpec)


def test_onnxruntime_genai_generates_the_same_tokens(build: Build, tiny_folder: Path) -> None:
    import onnxruntime_genai as genai

    build(tiny_folder, "--no-eval")
    prompt = [2, *range(10, 30)]
    model = genai.Model("out")
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + 12)
    generator = genai.Generator(model, parameters)
    generator.append_tokens([prompt])
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    ours = OnnxRuntime.load(Path("out"), "onnx").generate(prompt, max_new_tokens=12)
    assert len(ours) > 4
    assert [t for t in ours if t != EOS] == [t for t in theirs if t != EOS]


def test_the_text_model_of_a_multimodal_gemma_is_built(
    build: Build, tiny_folders: dict[Kind, Path]
) -> None:
    made = build(tiny_folders["gemma3"], "--bits", "32", "--no-eval")
    assert "onnx: the towers are left out, for the builder of onnxruntime-genai makes" in made.err
    stored, text = Onnx().open(Path("out")), open_checkpoint(str(tiny_folders["gemma3_text"]))
    assert all(torch.equal(stored.tensor(n), text.tensor(n, torch.float32)) for n in text.names())


def test_for_cuda_it_is_built_and_read_back_and_said_not_to_have_run(
    build: Build, tiny_folders: dict[Kind, Path]
) -> None:
    made = build(tiny_folders["gemma2"], "--target", "cuda", "--json")
    manifest = json.loads(made.out)["manifest"]
    reference, native = manifest["certificates"]
    assert reference["slices"][0]["kl_mean"]["value"] > 0
    assert native["not_run"] == "made for NVIDIA GPUs, in bfloat16: not executed here"
    assert manifest["quantization"]["float_dtype"] == "bfloat16"
    assert manifest["libraries"]["onnxruntime-genai"].startswith("0.18")


def test_the_manifest_as_recipe_makes_the_same_bytes_again(
    build: Build, run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    build(tiny_folders["gemma"], "--group-size", "64", "--no-eval")
    again = run("onnx", "--recipe", "out/manifest.json", "--threads", "1", "-o", "again")
    assert again.code == 0, again.err
    for file in sorted(Path("out").iterdir()):
        assert file.read_bytes() == (Path("again") / file.name).read_bytes(), file.name


def test_a_changed_graph_is_found(build: Build, run: Run, tiny_folders: dict[Kind, Path]) -> None:
    build(tiny_folders["gemma"], "--no-eval")
    graph = Path("out/model.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    assert run("verify", "out").code == 6


def test_a_builder_that_runs_out_of_memory_leaves_nothing(
    run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path
) -> None:
    options = ("--tool-memory", "50MB", "--no-eval", "-o", "out")
    result = run("onnx", str(tiny_folders["gemma2"]), *FEW, *options)
    assert result.code == 9
    assert "model builder used " in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(run: Run, tiny_folders: dict[Kind, Path], tmp_path: Path) -> None:
    result = run("onnx", str(tiny_folders["gemma2"]), *FEW, "--dry-run")
    assert result.code == 0, result.err
    assert "onnx, for cpu" in result.out
    assert list(tmp_path.iterdir()) == []


def test_it_answers_requests_of_tasks_as_the_checkpoint_does(
    build: Build, tiny_folders: dict[Kind, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    build(tiny_folders["gemma2"], "--bits", "32", "--no-eval")
    runtime = OnnxRuntime.load(Path("out"), "onnx")
    ids = tuple(LONG[0, :200].tolist())
    asked = [Window(ids, 150), Window(ids[:20], 0)]
    model = AutoModelForCausalLM.from_pretrained(
        tiny_folders["gemma2"], dtype=torch.float32, attn_implementation="eager"
    )
    for number, window in enumerate(asked):
        chunks = [chunk for chunk in runtime.logits(asked) if chunk.window == number]
        found = torch.cat([chunk.logits for chunk in chunks])
        with torch.no_grad():
            expected = model.eval()(torch.tensor([window.ids])).logits[0, window.first :]
        assert chunks[0].start == window.first
        assert (found - expected).abs().max() < 1e-3
    prompt = list(ids[:30])
    made = runtime.generate(prompt, max_new_tokens=8)
    assert list(runtime.tokens(prompt, limit=8))[: len(made)] == made
