"""The words in which a generation of Gemma is described: layers, folds, and ``Architecture``.

Each generation fills these in, in its own file (``gemma1.py``, ``gemma2.py``, ``gemma3.py``). Other
packages ask ``gemquant.models.architecture``, which knows every generation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gemquant.errors import GemquantError
from gemquant.models.chat_templates import ChatFormat
from gemquant.models.licences import GEMMA_TERMS, Licence

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
PER_LAYER_TABLE = "model.embed_tokens_per_layer.weight"
"""A second embedding: of every token, an input for every layer."""
DENSE_MODULES = "dense_modules"
"""Key of an embedding model's configuration: the modules after its pooling → [in, out].

Of sentence-transformers' own files; ``config.json`` does not have it.
"""
DENSE = ("dense_2.weight", "dense_3.weight")
"""Their weights, in this order, by the names that llama.cpp has for them."""
PER_LAYER_INPUTS = "+per-layer-inputs"
"""Ends the name of a kind that has such a table."""
PER_LAYER_PROJECTION = "model.per_layer_model_projection.weight"
PER_LAYER_NORM = "model.per_layer_projection_norm.weight"
LAYER_SCALAR = "layer_scalar"
"""What a layer's output is multiplied by, where it has one."""

FAMILY = "gemma"
"""The Hub's tag of every Gemma, and how the name of its architecture begins in a GGUF."""

ACTIVATION = "gelu_pytorch_tanh"
"""The only activation function of any Gemma."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""The two values of ``layer_types``."""


@dataclass(frozen=True)
class NormFold:
    """A scale on the inputs folds into a norm: w' = (offset + w) / s − offset.

    offset: 1 where the norm multiplies by 1 + w, 0 where it multiplies by w.
    """

    norm: str
    offset: float = 1.0


@dataclass(frozen=True)
class RowFold:
    """A scale on the inputs folds into the rows of the linear that produces them.

    repeats: how many inputs each row feeds. Grouped-query attention feeds one value channel to
    several heads, so those inputs must share one scale.
    head_dim: rows per key-value head, where repeats > 1.
    """

    linear: str
    repeats: int = 1
    head_dim: int = 0


@dataclass(frozen=True)
class InputGroup:
    """Linears that read the same input, and what their common scale folds into, if anything.

    observed: the module whose input that is, where it is not the linears' own.
    normed: (linear, head size) of one whose output a norm divides, head by head, by its size: only
    errors relative to that size count.
    """

    name: str
    linears: tuple[str, ...]
    fold: NormFold | RowFold | None
    observed: str = ""
    normed: tuple[str, int] | None = None

    @property
    def reader(self) -> str:
        """The module that reads the input: the key of its statistics."""
        return self.observed or self.linears[0]


@dataclass(frozen=True)
class Stack:
    """Matrices that a library stores as one tensor, the rows of one after those of another.

    shape: (experts, rows, columns). parts: short names of the matrices, in the order of their rows.
    """

    shape: tuple[int, int, int]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class LayerStructure:
    """One decoder layer, by short module names.

    groups: its linears, by the input they share, in the order of computation.
    shapes: every parameter (``mlp.up_proj.weight``) with its shape, in the order of storage.
    attention: ``full_attention`` or ``sliding_attention``.
    cache_values: keys and values that the layer caches for each token.
    stacks: tensors that the library stores for several matrices of ``shapes``, by short name.
    """

    groups: tuple[InputGroup, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attention: str = FULL
    cache_values: int = 0
    stacks: Mapping[str, Stack] = field(default_factory=dict)

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears, in the order of their inputs."""
        return tuple(linear for group in self.groups for linear in group.linears)

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of every linear."""
        shapes = {linear: self.shapes[f"{linear}.weight"] for linear in self.linears}
        return {linear: (shape[0], shape[1]) for linear, shape in shapes.items()}


def head_structure() -> LayerStructure:
    """The head as a layer of one linear, whose input's scale has nowhere to fold."""
    return LayerStructure((InputGroup("head", ("lm_head",), None),))


def table_structure(name: str) -> LayerStructure:
    """A table as a layer of one linear, which reads no activations."""
    return LayerStructure((InputGroup("embedding", (name.removesuffix(".weight"),), None),))


def layer_prefix(index: int) -> str:
    """Prefix of a decoder layer's tensors: ``model.layers.3.``."""
    return f"model.layers.{index}."


def gated_layer(
    config: Mapping[str, Any],
    index: int,
    *,
    before_mlp: str,
    norms: Sequence[str],
    norm_offset: float = 1.0,
    head_dim: int | None = None,
    value_projection: bool = True,
) -> LayerStructure:
    """Describe a decoder layer of attention and a gated MLP.

    before_mlp: the norm that gate and up read. norms: all norms, in the order of storage; those
    inside ``self_attn`` are as wide as a head. head_dim: of this layer, where it is not the
    configuration's. value_projection: False where the keys' projection produces the values too; a
    scale on o's input then has nowhere to fold.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = head_dim or config["head_dim"]
    values = ("self_attn.v_proj",) if value_projection else ()
    groups = (
        InputGroup(
            "qkv",
            ("self_attn.q_proj", "self_attn.k_proj", *values),
            NormFold("input_layernorm", norm_offset),
        ),
        InputGroup(
            "o",
            ("self_attn.o_proj",),
            RowFold("self_attn.v_proj", heads // kv_heads, width) if values else None,
        ),
        InputGroup("gate_up", ("mlp.gate_proj", "mlp.up_proj"), NormFold(before_mlp, norm_offset)),
        InputGroup("down", ("mlp.down_proj",), RowFold("mlp.up_proj")),
    )
    shapes = {
        "self_attn.q_proj": (heads * width, hidden),
        **dict.fromkeys(("self_attn.k_proj", *values), (kv_heads * width, hidden)),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        **{norm: (width if norm.startswith("self_attn") else hidden,) for norm in norms},
    }
    return LayerStructure(
        groups,
        {f"{name}.weight": shape for name, shape in shapes.items()},
        attention=config["layer_types"][index] if "layer_types" in config else FULL,
        cache_values=2 * kv_heads * width,
    )


GATED_LAYER_IN_GGUF: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
"""llama.cpp's name of every module that ``gated_layer`` always has, but the norm before the MLP."""


GgufKey = int | float | Sequence[int] | Sequence[bool]
"""A metadata value: uint32, float32, or an array of int32 or bool."""


@dataclass(frozen=True)
class GgufKeys:
    """What of a GGUF describes its model.

    keys: metadata without the architecture's prefix. vocab_size: rows of the embedding. tensors:
    the names of all. rope_factors: of ``rope_freqs.weight``, empty without it.
    """

    keys: Mapping[str, Any]
    vocab_size: int
    tensors: Collection[str] = ()
    rope_factors: Sequence[float] = ()


MmprojKey = bool | int | float | str | Sequence[float]
"""A metadata value: bool, uint32, float32, text, or an array of float32."""

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_ENDS = ("weight", "bias", "input_min", "input_max", "output_min", "output_max")


@dataclass(frozen=True)
class MmprojFacts:
    """How llama.cpp stores and computes the towers of a generation.

    modules: published module or tensor → its own, with N for a layer's number; None for what it
    does not have. in_float32: modules that always stay so though they are matrices; in_float16:
    likewise. values: of its own name, a tensor and ``config.json``, what is stored. mean, std: of
    images, where no file of the processor says more. keys: further metadata, of ``config.json``,
    the text model's hidden size and the processor's settings. refused: keys of ``config.json``,
    their values, and why it cannot have them.
    """

    modules: Mapping[str, str | None]
    keys: Callable[[Mapping[str, Any], int, Mapping[str, Any]], Mapping[str, MmprojKey]]
    values: Callable[[str, Tensor, Mapping[str, Any]], Tensor]
    refused: Callable[[Mapping[str, Any], Mapping[str, Any]], Iterable[tuple[str, object, str]]]
    mean: float
    std: float
    in_float32: frozenset[str] = field(default=frozenset({"v.position_embd"}))
    in_float16: frozenset[str] = frozenset()

    def place(self, name: str) -> tuple[str, str] | None:
        """Its name of a published tensor, and the module's with N for a layer's number.

        None for what it does not have; KeyError for a name that no tower has.
        """
        found = _LAYER.search(name)
        pattern = _LAYER.sub(".layers.N.", name)
        module, _, end = pattern.rpartition(".")
        if end not in _ENDS:
            module, end = pattern, "weight"
        own = self.modules[module.removesuffix(".linear")]
        if own is None:
            return None
        # What is named like a whole tensor already needs no end.
        tensor = own if own in {"v.std_bias", "v.std_scale"} else f"{own}.{end}"
        return tensor.replace(".N.", f".{found[1]}." if found else "."), own


@dataclass(frozen=True)
class GgufFacts:
    """How llama.cpp stores and computes a generation.

    architecture: its ``general.architecture``. tensors: the modules of a layer, ``ffn_gate`` →
    ``mlp.gate_proj``. layers_of_27b: number of layers by which it recognizes a 27B, whose query
    scale it then takes from hidden / heads, not from head_dim. untied_head: it reads a head that
    differs from the embedding. caps_attention: it computes ``attn_logit_softcapping``.
    requires_softcaps: it caps always, also where no key says so. requires_window: it expects
    ``attention.sliding_window`` also where no layer slides. writes_rope_base: its converter writes
    ``rope.freq_base`` also where it is the default. block_count_first: its converter writes that
    key before the dimensions. ollama: number of layers → keys of the configuration that its files
    have wrong and its runner corrects. end_of_turn_id: the token that its converter writes as EOT
    where the tokenizer's files name none.
    parameters: what of a layer ``tensors`` cannot spell, ``ffn_gate_inp.scale`` → ``router.scale``;
    older: what older converters wrote instead, which is read and not written.
    outside: further tensors that belong to no layer. in_float32: parts that stay in float32 though
    they are matrices; in_16_bits: that stay in 16 bits. rope_types: of full layers, that it
    computes. rope_factors: content of ``rope_freqs.weight``, which divides each frequency of full
    layers; None where there is none. keys: further keys, or other values of those that every
    generation has; from_keys: the configuration's keys from these, and from the names and
    ``rope_factors`` of a file. refused: keys of the configuration, their values, and why it cannot
    have them. merges: the vocabulary is stored with BPE's merges, for the tokenizer that is named
    after the architecture; visible_tokens: those that it renders although they are special.
    mmproj: how it stores the towers, in a file of their own; None where it has none.

    Source: llama.cpp ``conversion/gemma.py``, ``src/models/gemma*.cpp``; gguf-py
    ``tensor_mapping.py``; ollama ``model/models/gemma3/model_text.go``.
    """

    architecture: str
    tensors: Mapping[str, str]
    layers_of_27b: int | None = None
    untied_head: bool = False
    caps_attention: bool = True
    requires_softcaps: bool = False
    requires_window: bool = False
    writes_rope_base: bool = False
    block_count_first: bool = False
    end_of_turn_id: int | None = None
    ollama: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    older: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    in_float32: frozenset[str] = frozenset()
    in_16_bits: frozenset[str] = frozenset()
    rope_types: tuple[str, ...] = ("default", "linear")
    rope_factors: Callable[[Mapping[str, Any]], Sequence[float] | None] = lambda _: None
    keys: Callable[[Mapping[str, Any]], Mapping[str, GgufKey]] = lambda _: {}
    from_keys: Callable[[GgufKeys], Mapping[str, Any]] = lambda _: {}
    refused: Callable[[Mapping[str, Any]], Iterable[tuple[str, object, str]]] = lambda _: ()
    merges: bool = False
    visible_tokens: frozenset[str] = frozenset()
    mmproj: MmprojFacts | None = None

    def query_pre_attn_scalar(self, config: Mapping[str, Any]) -> int:
        """The square of the query scale's denominator, which llama.cpp infers from the sizes."""
        if config["num_hidden_layers"] == self.layers_of_27b:
            return int(config["hidden_size"] // max(config["num_attention_heads"], 1))
        return int(config["head_dim"])


WholeKeys = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class MlxFacts:
    """How mlx-lm computes a generation.

    untied_head: it reads a head that differs from the embedding. ignores_window: it lets sliding
    layers attend to everything. regular_layer_types: it lets every n-th layer attend to everything,
    whatever ``layer_types`` says. keys: of ``config.json`` that it wants otherwise.
    whole_keys: of a multimodal ``config.json`` and the text model's configuration, keys that
    mlx-vlm wants in each part; those of "" at the top. whole_head: mlx-vlm reads a head of such a
    model that is quantized or differs from the embedding.

    Source: mlx-lm 0.32 and mlx-vlm 0.7 ``models/gemma*``.
    """

    untied_head: bool = False
    ignores_window: bool = False
    regular_layer_types: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)
    whole_keys: WholeKeys = lambda *_: {}
    whole_head: bool = True


Settings = Callable[[Mapping[str, Any], Mapping[str, Any], list[GemquantError]], dict[str, Any]]
"""Of a file's text part and what was read of it: further keys; appends what is wrong."""

TowerShapes = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ImageCost:
    """One image: tokens of the context, and values that are alive at once while it is read.

    values: of the layer that has most, attention without its matrix of scores.
    """

    tokens: int
    values: int


ReadsImages = Callable[[Mapping[str, Any], Mapping[str, Any]], ImageCost | None]


@dataclass(frozen=True)
class Architecture:
    """All that is true of one generation of Gemma.

    name: for messages, "Gemma 2". model_type: of the text model in ``config.json``, unless
    library_type is that: one that another architecture has too. causal_lm: the library's class of
    the text model with its head. library: imports and returns the library's (configuration class,
    class of the model without a head).
    prompts: of an embedding model, which has no head and whose tokens attend to both sides: what
    stands before queries and documents.
    wrappers: multimodal class → its ``model_type``; their ``text_config`` is a text model of this
    generation.
    dimensions, softcaps: keys of the configuration with the values that the library assumes.
    full_attention_every: every n-th layer attends to everything, the others to a window; None
    where there is no window. reads_window_pattern: ``sliding_window_pattern`` replaces that n.
    rope_theta: the base that the library assumes. rope_by_layer_type: full and sliding layers have
    rotary tables of their own. rope_full: of full layers, where the file says nothing.
    activation_key, activations: where the activation's name stands, and the spellings accepted.
    heads_divide_hidden: hidden_size must be a multiple of num_attention_heads.
    layer: describes decoder layer ``index`` of a configuration.
    outside: shapes of the tensors that come before the layers, apart from the embedding.
    settings: reads and checks the keys of the configuration that this generation alone has.
    other_keys: what programs that do not use the library read of a configuration; None for the
    spellings of transformers 4.
    unused: whether a tensor of a checkpoint is one that the library ignores.
    without_inputs: prepares the library's model for a call with ``inputs_embeds`` alone.
    kept: modules that stay in 16 bits, by the end of their names, with the reason.
    norm_offset: norms multiply by norm_offset + w.
    eager_attention: the library computes it with no other implementation than ``eager``.
    overflows_float16: activations exceed float16. vllm_float16: vLLM accepts float16 for it.
    vllm_class: vLLM's name of the text model, where that is not the library's.
    autoawq: AutoAWQ quantizes it. no_onnx: why onnxruntime-genai's builder does not make it.
    text_prefixes: how a multimodal checkpoint's tensors of the text model begin → how the text
    model's own do, the published spelling first.
    towers: how its other tensors begin, as published. tower_spellings: how else they begin, without
    ``model.`` → as published. tower_shapes: of a multimodal ``config.json`` and the text model's
    configuration, shapes by published names. image: of the same, what one image costs.
    corrections: key of the configuration → a value that was published by mistake, and the right
    one. licence: its terms. chat: its chat format.
    """

    name: str
    model_type: str
    causal_lm: str
    library: Callable[[], tuple[type[Any], type[Any]]]
    layer: Callable[[Mapping[str, Any], int], LayerStructure]
    dimensions: Mapping[str, int]
    gguf: GgufFacts
    mlx: MlxFacts = field(default_factory=MlxFacts)
    library_type: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    wrappers: Mapping[str, str] = field(default_factory=dict)
    softcaps: Mapping[str, float | None] = field(default_factory=dict)
    full_attention_every: int | None = None
    reads_window_pattern: bool = False
    rope_theta: float = 10_000.0
    rope_by_layer_type: bool = False
    rope_full: Mapping[str, Any] = field(default_factory=dict)
    activation_key: str = "hidden_activation"
    activations: tuple[str, ...] = (ACTIVATION,)
    heads_divide_hidden: bool = True
    outside: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]] = lambda _: {}
    settings: Settings = lambda *_: {}
    other_keys: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    unused: Callable[[Mapping[str, Any], str], bool] = lambda *_: False
    without_inputs: Callable[[Any], None] = lambda _: None
    kept: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 1.0
    eager_attention: bool = False
    overflows_float16: bool = False
    vllm_float16: bool = False
    vllm_class: str | None = None
    autoawq: bool = False
    no_onnx: str | None = None
    text_prefixes: Mapping[str, str] = field(default_factory=dict)
    towers: tuple[str, ...] = ()
    tower_spellings: Mapping[str, str] = field(default_factory=dict)
    tower_shapes: TowerShapes = lambda *_: {}
    image: ReadsImages = lambda *_: None
    corrections: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    licence: Licence = GEMMA_TERMS
    chat: ChatFormat = field(default_factory=ChatFormat)

    @property
    def embeds(self) -> bool:
        """Whether it is an embedding model."""
        return bool(self.prompts)

    @property
    def tower_prefixes(self) -> Mapping[str, str]:
        """How names of towers' tensors begin, after an optional ``model.`` → as published."""
        published = {prefix.removeprefix("model."): prefix for prefix in self.towers}
        return {**published, **self.tower_spellings}

    def published_name(self, name: str) -> str:
        """The name in a published multimodal checkpoint of a tensor of the text model."""
        for theirs, ours in self.text_prefixes.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def tower_name(self, name: str) -> str | None:
        """The published name of a tower's tensor; None for any other."""
        bare, prefixes = name.removeprefix("model."), self.tower_prefixes
        begins = max((each for each in prefixes if bare.startswith(each)), key=len, default=None)
        return None if begins is None else prefixes[begins] + bare.removeprefix(begins)


def tower_of(name: str) -> str:
    """The tower or projector that a tensor of a multimodal checkpoint belongs to.

    >>> tower_of("model.vision_tower.patch_embedder.input_proj.weight")
    'vision_tower'
    """
    return name.removeprefix("model.").partition(".")[0]
