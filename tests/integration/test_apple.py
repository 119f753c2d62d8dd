"""`--target mps` as a user runs it; what needs MLX is compared where MLX is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gemquant.convert.plugins import exporter
from gemquant.core.protocols import AffineScheme, QuantizedSpec
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.formats.mlx import MLX
from gemquant.models.structure import EMBEDDING, HEAD
from tests.helpers.grid_gemma import write_grid_gemma
from tests.helpers.tiny_gemma import NESTED, Kind, write_tiny_gemma
from tests.integration.test_command_line import make
from tests.unit.cli.conftest import Run

WINDOWS = ("--eval-windows", "1", "--eval-slices", "english", "--seq-len", "64")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Calibration text of the user's own."""
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog and it is for you\n" * 40)
    return file


@pytest.mark.parametrize("container", ["mlx", "metal"])
@pytest.mark.parametrize("quantizer", ["rtn", "awq"])
def test_an_artifact_for_apple_verifies_and_has_a_certificate(
    run: Run, tiny_folder: Path, text: Path, quantizer: str, container: str
) -> None:
    options = ("--target", "mps", "--exporter", container, "--calib", str(text))
    result = make(run, quantizer, tiny_folder, *options)
    assert result.code == 0, result.err
    assert "95 % interval over windows" in result.out
    assert run("verify", "out").code == 0


@pytest.mark.parametrize("quantizer", ["rtn", "awq"])
def test_symmetric_schemes_are_stored_with_their_bias(
    run: Run, tiny_folders: dict[Kind, Path], text: Path, quantizer: str
) -> None:
    options = ("--target", "mps", "--symmetric", "--calib", str(text), "--no-eval")
    result = make(run, quantizer, tiny_folders["gemma2"], *options)
    assert result.code == 0, result.err
    weight = MLX().open(Path("out")).quantized("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(weight.zero_points, torch.full((384, 4), 8.0))


def test_the_certificate_is_of_the_weights_that_were_stored(
    run: Run, tiny_folders: dict[Kind, Path], text: Path
) -> None:
    options = ("--target", "mps", "--calib", str(text), "--bits", "8", "--json")
    made = json.loads(make(run, "awq", tiny_folders["gemma3_text"], *options).out)
    again = json.loads(run("eval", "out", "--threads", "1", "--no-native", "--json").out)
    first = made["manifest"]["certificates"][0]["slices"][0]["kl_mean"]["value"]
    second = again["artifacts"][0]["levels"][0]["slices"][0]["kl_mean"]["value"]
    assert second == pytest.approx(first, rel=1e-4)


def test_awq_loses_less_than_rounding(
    run: Run, tiny_folders: dict[Kind, Path], text: Path, tmp_path: Path
) -> None:
    lost = {}
    for quantizer in ("rtn", "awq"):
        options = ("--target", "mps", "--bits", "3", "--calib", str(text), "--json", "--force")
        made = json.loads(make(run, quantizer, tiny_folders["gemma2"], *options).out)
        slices = made["manifest"]["certificates"][0]["slices"]
        lost[quantizer] = sum(s["kl_mean"]["value"] for s in slices)
    assert lost["awq"] < 0.8 * lost["rtn"]


def test_the_documented_plug_in_is_stored_too(
    run: Run, tiny_folders: dict[Kind, Path], clipped: None
) -> None:
    result = make(run, "clipped", tiny_folders["gemma2"], "--target", "mps")
    assert result.code == 0, result.err


def test_without_mlx_the_native_level_says_what_to_install(
    run: Run, tiny_folders: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemquant.runtimes.runtime.installed_version", lambda package: None)
    make(run, "rtn", tiny_folders["gemma2"], "--target", "mps")
    result = run("eval", "out", "--threads", "1")
    assert result.code == 0, result.err
    assert "not run, mlx and mlx-lm not installed; pip install 'gemquant[mlx]'" in result.out


@pytest.mark.parametrize("quantizer", ["rtn", "awq"])
def test_the_embedding_is_quantized_when_asked_and_its_loss_is_counted(
    run: Run, tiny_folder: Path, text: Path, quantizer: str
) -> None:
    options = ("--target", "mps", "--bits", "8", "--calib", str(text), "--json", "--force")
    lost = {}
    for flag in ("--no-quantize-embedding", "--quantize-embedding"):
        made = json.loads(make(run, quantizer, tiny_folder, *options, flag).out)
        slices = made["manifest"]["certificates"][0]["slices"]
        lost[flag] = slices[0]["kl_mean"]["value"]
    stored = MLX().open(Path("out"))
    assert isinstance(stored.layout[EMBEDDING], QuantizedSpec)
    assert HEAD not in stored.layout
    assert lost["--quantize-embedding"] != lost["--no-quantize-embedding"]
    assert run("verify", "out").code == 0
    again = json.loads(run("eval", "out", "--threads", "1", "--no-native", "--json").out)
    second = again["artifacts"][0]["levels"][0]["slices"][0]["kl_mean"]["value"]
    assert second == pytest.approx(lost["--quantize-embedding"], rel=1e-4)


@pytest.mark.parametrize("exporter_name", ["compressed-tensors", "metal"])
def test_other_containers_refuse_a_quantized_embedding(
    run: Run, tiny_folders: dict[Kind, Path], exporter_name: str
) -> None:
    target = "mps" if exporter_name == "metal" else "cuda"
    options = ("--target", target, "--exporter", exporter_name, "--quantize-embedding")
    result = make(run, "rtn", tiny_folders["gemma2"], *options)
    assert result.code == 4
    assert f"{exporter_name} cannot hold a quantized model.embed_tokens" in result.err


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_round_to_nearest_stores_the_bytes_of_mx_quantize(
    run: Run, tiny_folder: Path, bits: int
) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    options = ("--target", "mps", "--bits", str(bits), "--no-eval", "--quantize-embedding")
    made = make(run, "rtn", tiny_folder, *options)
    assert made.code == 0, made.err
    original = mx.load(str(tiny_folder / "model.safetensors"))
    stored = mx.load("out/model.safetensors")
    compared = 0
    for name, scales in stored.items():
        if not name.endswith(".scales"):
            continue
        module = name.removesuffix(".scales")
        expected = mx.quantize(original[f"{module}.weight"], group_size=32, bits=bits)
        found = (stored[f"{module}.weight"], scales, stored[f"{module}.biases"])
        for theirs, ours in zip(expected, found, strict=True):
            assert theirs.dtype == ours.dtype
            assert bytes(memoryview(theirs.view(mx.uint8))) == bytes(
                memoryview(ours.view(mx.uint8))
            )
        compared += 1
    assert compared >= 15
    assert "model.embed_tokens.scales" in stored


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "gemma4_e"])
def test_mlx_lm_computes_with_the_quantized_embedding(
    run: Run, tmp_path: Path, text: Path, kind: Kind
) -> None:
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    folder = write_tiny_gemma(tmp_path / "model", kind)
    options = ("--target", "mps", "--calib", str(text), "--quantize-embedding", "--json")
    made = make(run, "awq", folder, *options)
    assert made.code == 0, made.err
    (certified,) = json.loads(made.out)["manifest"]["certificates"]
    result = run("eval", "out", "--threads", "1", "--json")
    assert result.code == 0, result.err
    again, native = json.loads(result.out)["artifacts"][0]["levels"]
    lost, found = (each["slices"][0]["kl_mean"]["value"] for each in (certified, again))
    assert found == pytest.approx(lost, rel=1e-4)
    assert native["kl_from_reference"]["value"] < 1e-5


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gemma4_e", ()),
        ("gemma4_e", ("--quantize-embedding",)),
        ("gemma4_text", ()),
        ("gemma4_moe", ()),
        ("gemma4_unified", ()),
    ],
)
def test_mlx_lm_computes_a_gemma_4_from_its_stored_weights(
    run: Run, kind: Kind, options: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    folder = write_tiny_gemma(tmp_path / "model", kind)
    made = make(run, "rtn", folder, "--target", "mps", "--no-eval", *options)
    assert made.code == 0, made.err
    stored = MLX().open(Path("out")).layout
    if options:
        table = stored["model.embed_tokens_per_layer.weight"]
        assert isinstance(table, QuantizedSpec)
        assert table.scheme == AffineScheme(8, 32, symmetric=False)
    assert isinstance(stored["model.layers.0.mlp.up_proj.weight"], QuantizedSpec)
    if kind == "gemma4_moe":
        assert isinstance(stored["model.layers.0.experts.7.down_proj.weight"], QuantizedSpec)
    result = run("eval", "out", "--threads", "1", "--json", *WINDOWS)
    assert result.code == 0, result.err
    _, native = json.loads(result.out)["artifacts"][0]["levels"]
    assert native["kl_from_reference"]["value"] < 1e-5


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_mlx_lm_computes_a_grid_with_negative_scales(run: Run, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    folder = write_grid_gemma(tmp_path / "model", "gemma3_text", extreme_code=-8)
    options = ("--target", "mps", "--group-size", "32", "--no-eval", "--qat", "on")
    made = make(run, "rtn", folder, *options)
    assert made.code == 0, made.err
    stored = mx.load("out/model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.scales"].min().item() < 0
    result = run("eval", "out", "--threads", "1", "--json", *WINDOWS)
    assert result.code == 0, result.err
    _, native = json.loads(result.out)["artifacts"][0]["levels"]
    assert native["kl_from_reference"]["value"] < 1e-5


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NESTED)
def test_mlx_lm_computes_the_text_model_of_a_multimodal_folder(
    run: Run, kind: Kind, tmp_path: Path
) -> None:
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    made = make(run, "rtn", write_tiny_gemma(tmp_path / "model", kind), "--target", "mps")
    assert made.code == 0, made.err
    assert json.loads(Path("out/manifest.json").read_text())["towers"]
    result = run("eval", "out", "--threads", "1", "--json", *WINDOWS)
    assert result.code == 0, result.err
    _, native = json.loads(result.out)["artifacts"][0]["levels"]
    assert native["kl_from_reference"]["value"] < 1e-5


def test_experts_of_a_layer_are_stored_as_one_module(run: Run, tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma4_moe")
    made = make(run, "rtn", folder, "--target", "mps", "--no-eval")
    assert made.code == 0, made.err
    with safe_open("out/model.safetensors", "pt") as file:
        packed = file.get_slice("language_model.model.layers.1.experts.switch_glu.down_proj.weight")
        assert packed.get_shape() == [8, 128, 64 // 8]
        assert "language_model.model.layers.1.router.proj.weight" in file.keys()  # noqa: SIM118
    weights = MLX().open(Path("out"))
    plain = open_checkpoint(str(folder))
    name = "model.layers.1.experts.5.up_proj.weight"
    expected = plain.tensor(name, torch.float32)
    assert (weights.tensor(name) - expected).abs().mean() < 0.3 * expected.abs().mean()
    other = weights.tensor(name.replace(".5.", ".4."))
    assert (other - expected).abs().mean() > expected.abs().mean()


def test_experts_of_several_schemes_are_refused(run: Run, tmp_path: Path) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma4_moe")
    result = make(run, "rtn", folder, "--target", "mps", "--no-eval", "--skip", "*.experts.3.*")
    assert result.code == 4
    assert "layers.0.experts.switch_glu, " in result.err
    assert "mlx-lm has one scheme for all experts of a layer." in result.err


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_eval_measures_mlx_lm_at_level_native(
    run: Run, tiny_folders: dict[Kind, Path], text: Path
) -> None:
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    made = make(run, "awq", tiny_folders["gemma2"], "--target", "mps", "--calib", str(text))
    assert made.code == 0, made.err
    result = run("eval", "out", "--threads", "1", "--json")
    assert result.code == 0, result.err
    reference, native = json.loads(result.out)["artifacts"][0]["levels"]
    assert "CPU, no Apple GPU involved; Gemma 2 only within its window of 8" in native["runtime"]
    assert [s["windows"]["tokens"] for s in native["slices"]] == [[7], [7]]
    assert native["kl_from_reference"]["value"] < 1e-5
    streams = [level["slices"][0]["token_stream"] for level in (reference, native)]
    assert streams[0] != streams[1]


def test_reading_back_needs_no_mlx(run: Run, tiny_folders: dict[Kind, Path]) -> None:
    make(run, "rtn", tiny_folders["gemma2"], "--target", "mps", "--no-eval")
    weights = exporter("mlx").open(Path("out"))
    assert isinstance(exporter("mlx"), MLX)
    assert weights.stored_dtype("model.layers.0.mlp.up_proj.weight") == torch.float32
