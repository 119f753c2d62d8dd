"""How to load each container, for the model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gemquant.core.artifact.manifest import (
    Manifest,
    Quantization,
    SchemeRecord,
    gguf_files,
    scheme_label,
    tower_file,
)
from gemquant.models.architecture import ARCHITECTURES
from gemquant.models.experts import has_experts

_VLLM_BITS = (4, 8)
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up"),
}
"""Linears that vLLM computes as one, and so in one scheme."""
_RKLLM = "https://github.com/airockchip/rknn-llm/tree/main"


@dataclass(frozen=True)
class Loader:
    """A paragraph, and the code below it; no code where something does not work."""

    text: str
    language: str = ""
    code: str = ""


FOLDER = "path/to/this/folder"
RUNTIMES = {
    "gguf": "llama.cpp",
    "mlx": "mlx-lm",
    "onnx": "onnxruntime-genai",
    "rkllm": "Rockchip's NPUs",
}
"""What a container is for, where that is not transformers."""
_TAKE_FOLDERS = ("onnx", "rkllm")
"""Containers whose runtimes take a folder; the others take the name of a repository too."""


def loaders(manifest: Manifest, repository: str | None = None) -> list[Loader]:
    """Return what loads an artifact, and which likely candidates do not.

    repository: on the Hub, if it is known.
    """
    known = _loaders(manifest)
    if repository is None:
        return known
    folder = repository.partition("/")[2]
    download = Loader("To download:", "sh", f"hf download {repository} --local-dir {folder}")
    if manifest.container == "gguf":
        tagged = f"{repository}:{scheme_label(manifest)}"
        if ARCHITECTURES[manifest.architecture].embeds:
            served = Loader(
                "With llama.cpp, which downloads it:",
                "sh",
                f"llama-server -hf {tagged} --embedding",
            )
            return [served, download]
        code = f"llama-server -hf {tagged}\nollama run hf.co/{tagged}"
        return [Loader("With llama.cpp or Ollama, which download it:", "sh", code), download]
    place = folder if manifest.container in _TAKE_FOLDERS else repository
    return [download, *(replace(each, code=each.code.replace(FOLDER, place)) for each in known)]


def _loaders(manifest: Manifest) -> list[Loader]:
    known: Mapping[str, Callable[[Manifest], list[Loader]]] = {
        "awq-gemm": _awq_gemm,
        "bitsandbytes": _bitsandbytes,
        "compressed-tensors": _compressed_tensors,
        "gguf": _gguf,
        "gptq": _gptq,
        "metal": _metal,
        "mlx": _mlx,
        "onnx": _onnx,
        "rkllm": _rkllm,
        "safetensors": _safetensors,
    }
    if manifest.container not in known:
        return [Loader(f"See the documentation of `{manifest.container}`.")]
    if ARCHITECTURES[manifest.architecture].embeds:
        return _embedding_loaders(manifest)
    loaders = known[manifest.container](manifest)
    return [*_WITH_IMAGES.get(manifest.container, []), *loaders] if manifest.towers else loaders


def _embedding_loaders(manifest: Manifest) -> list[Loader]:
    if manifest.container == "gguf":
        name = min(
            (name for name in manifest.files if name.endswith(".gguf")), default="MODEL.gguf"
        )
        code = f"""\
llama-embedding -m {FOLDER}/{name} -p "task: search result | query: how tall is it"
llama-server -m {FOLDER}/{name} --embedding --ubatch-size 2048 --port 8080"""
        return [Loader("With llama.cpp, which adds no prompt of its own:", "sh", code)]
    packages = {"bitsandbytes": " bitsandbytes", "compressed-tensors": " compressed-tensors"}
    code = f"""\
# pip install sentence-transformers accelerate{packages.get(manifest.container, "")}
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{FOLDER}")
queries = model.encode_query(["Which planet is known as the red planet?"])
documents = model.encode_document(["Mars is called the red planet.", "Venus is hot."])
print(model.similarity(queries, documents))"""
    return [Loader("With sentence-transformers:", "python", code)]


def _awq_gemm(manifest: Manifest) -> list[Loader]:
    packages = "gptqmodel accelerate"
    transformers = _transformers(packages, "float16")
    architecture = ARCHITECTURES[manifest.architecture]
    dtype = "float32" if architecture.overflows_float16 else "float16"
    images = [_image_loader(packages, dtype)] if manifest.towers else []
    if architecture.overflows_float16:
        return [
            Loader(
                f"This container is made for float16, where {architecture.name} overflows: "
                "vLLM refuses the pair, and on a GPU transformers computes NaN. On a CPU:"
            ),
            _transformers(packages, "float32"),
            *images,
        ]
    if not architecture.vllm_float16:
        flags = "--dtype bfloat16 --quantization awq_marlin"
        return [*images, transformers, _vllm(manifest, flags)]
    return [transformers, _vllm(manifest)]


def _bitsandbytes(manifest: Manifest) -> list[Loader]:
    del manifest  # every generation alike
    return [_transformers("bitsandbytes accelerate", "bfloat16")]


def _compressed_tensors(manifest: Manifest) -> list[Loader]:
    loaders = [_transformers("compressed-tensors accelerate", "bfloat16")]
    schemes = manifest.quantization.schemes
    if has_experts(module for scheme in schemes for module in scheme.modules):
        loaders = [Loader("transformers 5.23 reads experts as one tensor: it cannot load these.")]
    for scheme in schemes:
        if scheme.bits not in _VLLM_BITS or (scheme.bits == 8 and not scheme.symmetric):
            zero_points = "" if scheme.symmetric else " with zero points"
            loaders.append(Loader(f"vLLM has no kernel for {scheme.bits} bits{zero_points}."))
            return loaders
    if len(schemes) > 1 and not all(scheme.symmetric for scheme in schemes):
        loaders = [Loader("transformers 5.23 cannot load several schemes with zero points.")]
    return [*loaders, _vllm(manifest)]


def _gptq(manifest: Manifest) -> list[Loader]:
    architecture = ARCHITECTURES[manifest.architecture]
    dtype = "float32" if architecture.overflows_float16 else "float16"
    flags = "" if architecture.vllm_float16 else "--dtype bfloat16"
    return [_transformers("gptqmodel optimum accelerate", dtype), _vllm(manifest, flags)]


def _gguf(manifest: Manifest) -> list[Loader]:
    # The first of several parts names them all.
    model = f"-m {FOLDER}/{next(iter(gguf_files(manifest)), 'MODEL.gguf')}"
    code = f"llama-cli {model}\nllama-server {model} --port 8080"
    if (towers := tower_file(manifest)) is not None:
        seen = f"{model} --mmproj {FOLDER}/{towers}"
        code = f"llama-server {seen} --port 8080\nllama-mtmd-cli {seen} --image IMAGE -p QUESTION"
    return [Loader("With llama.cpp, and whatever is built on it:", "sh", code)]


def _metal(manifest: Manifest) -> list[Loader]:  # noqa: ARG001 (all are called alike)
    return [
        Loader(
            "On the `mps` device of a Mac, transformers computes on the packed weights; on any "
            "other it decodes them while loading, which takes the memory of the original."
        ),
        _transformers("'kernels>=0.18.2,<0.19' accelerate", "bfloat16"),
    ]


def _mlx(manifest: Manifest) -> list[Loader]:
    code = """\
pip install mlx-lm
mlx_lm.generate --model path/to/this/folder --prompt "The capital of France is" --max-tokens 20"""
    loaders = [Loader("With mlx-lm, on a Mac:", "sh", code)]
    architecture = ARCHITECTURES[manifest.architecture]
    if architecture.mlx.ignores_window:
        loaders.append(
            Loader(
                f"mlx-lm lets every layer of {architecture.name} attend to everything, so its "
                "answers are right only within the model's sliding window."
            )
        )
    return loaders


def _onnx(manifest: Manifest) -> list[Loader]:
    on_gpu = manifest.quantization.float_dtype != "float32"
    package = "onnxruntime-genai-cuda" if on_gpu else "onnxruntime-genai"
    code = f"""\
# pip install {package}
import onnxruntime_genai as genai

model = genai.Model("path/to/this/folder")
tokenizer = genai.Tokenizer(model)
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=64)
generator = genai.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("The capital of France is"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""
    loaders = [Loader("With onnxruntime-genai:", "python", code)]
    if not on_gpu:
        loaders.append(
            Loader(
                "Plain onnxruntime runs `model.onnx` too, from `input_ids`, `attention_mask` and "
                "the keys and values of every layer, empty at first, to `logits`."
            )
        )
    return loaders


def _rkllm(manifest: Manifest) -> list[Loader]:
    name = next((name for name in manifest.files if name.endswith(".rkllm")), "MODEL.rkllm")
    code = f"""\
export LD_LIBRARY_PATH=./lib RKLLM_LOG_LEVEL=1
./llm_demo {name} 512 4096  # new tokens, context"""
    return [
        Loader(
            f"On the board, with the vendor's demo ([rkllm_api_demo]({_RKLLM}/examples/"
            f"rkllm_api_demo), [runtime]({_RKLLM}/rkllm-runtime), "
            f"[driver]({_RKLLM}/rknpu-driver)):",
            "sh",
            code,
        ),
        Loader(
            "The runtime's version must be the toolkit's: structures differ between releases. "
            "From 1.2.0 it applies the chat template to text itself: give it the bare question, or "
            "tokens."
        ),
    ]


def _safetensors(manifest: Manifest) -> list[Loader]:
    dtype = manifest.quantization.float_dtype
    loaders = [_transformers("accelerate", dtype)]
    seen = manifest.activation_range
    if dtype == "float16" and (seen is None or not seen.fits_float16):
        why = "Activations were seen to overflow" if seen else "Activations may overflow"
        caution = Loader(f"{why} in float16: compute in bfloat16.")
        loaders = [caution, _transformers("accelerate", "bfloat16")]
    if dtype == "float16" and not ARCHITECTURES[manifest.architecture].vllm_float16:
        return [*loaders, _vllm(manifest, "--dtype bfloat16")]
    return [*loaders, _vllm(manifest)]


def _transformers(packages: str, dtype: str) -> Loader:
    code = f"""\
# pip install transformers {packages}
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.{dtype}, device_map="auto")
inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""
    return Loader("With transformers:", "python", code)


def _image_loader(packages: str, dtype: str = "auto") -> Loader:
    code = f"""\
# pip install transformers {packages} pillow torchvision
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="{dtype}", device_map="auto")
content = [{{"type": "image", "url": "IMAGE"}}, {{"type": "text", "text": "What is in it?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device)
print(processor.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""
    return Loader("With transformers, and an image:", "python", code)


_MLX_VLM = """\
pip install mlx-vlm
mlx_vlm.generate --model path/to/this/folder --image IMAGE --prompt 'What is in it?'"""

_WITH_IMAGES: Mapping[str, list[Loader]] = {
    "bitsandbytes": [_image_loader("bitsandbytes accelerate")],
    "compressed-tensors": [_image_loader("compressed-tensors accelerate")],
    "metal": [_image_loader("'kernels>=0.18.2,<0.19' accelerate")],
    "mlx": [Loader("With mlx-vlm, on a Mac, and an image:", "sh", _MLX_VLM)],
    "safetensors": [_image_loader("accelerate")],
}
"""How containers with towers are loaded."""


def _vllm(manifest: Manifest, flags: str = "") -> Loader:
    if _has_split_linears(manifest.quantization):
        return Loader(
            "vLLM cannot load these: it computes q, k and v, and gate and up, as one matrix each, "
            "in one scheme."
        )
    return Loader("With vLLM, on a GPU:", "sh", f"vllm serve path/to/this/folder {flags}".rstrip())


def _has_split_linears(quantization: Quantization) -> bool:
    """Whether linears that vLLM computes as one are stored in several ways."""
    stored = [(module, scheme) for scheme in quantization.schemes for module in scheme.modules]
    found: dict[tuple[str, str], list[SchemeRecord | None]] = {}
    for module, scheme in (*stored, *((module, None) for module in quantization.unquantized)):
        layer, _, name = module.rpartition(".")
        if name in _FUSED:
            found.setdefault((layer, _FUSED[name]), []).append(scheme)
    return any(each != ways[0] for ways in found.values() for each in ways)
