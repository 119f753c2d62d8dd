"""transformers: level ``native`` for most containers, and the runtime of every original.

Only code of transformers, compressed-tensors, gptqmodel or bitsandbytes reads the files. Modes:

eager               eager attention, a cache that grows
sdpa                torch's scaled-dot-product attention, a cache that grows
flash-attention-2   the package flash-attn, a cache that grows
static              eager attention, a cache of its final size
compiled            the same with a compiled decoding step; on accelerators only, which is
                    transformers' rule
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from gemquant.errors import ArtifactError, RuntimeMissingError
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.formats.checkpoint.sentence import with_modules
from gemquant.formats.checkpoint.tokenizer_files import token_ids
from gemquant.models.architecture import model_types
from gemquant.models.config import architecture_of_file
from gemquant.models.experts import has_experts
from gemquant.models.skeleton import Skeleton
from gemquant.runtimes.runtime import (
    DEFAULTS,
    POSITIONS_AT_ONCE,
    Chunk,
    EmbeddingRuntime,
    HiddenStatesRuntime,
    LoadOptions,
    Mode,
    Requirement,
    SpeedRuntime,
    Timing,
    Window,
    installed_version,
    likeliest,
)

if TYPE_CHECKING:
    import threading

    from gemquant.formats.checkpoint import Checkpoint
    from gemquant.runtimes.sampling import Sampling

logger = logging.getLogger(__name__)

_REQUIRED: Mapping[str, Requirement] = {
    "awq-gemm": Requirement(("gptqmodel", "accelerate"), "pip install gptqmodel accelerate"),
    "bitsandbytes": Requirement(
        ("bitsandbytes", "accelerate"), "pip install 'gemquant[bitsandbytes]'"
    ),
    "compressed-tensors": Requirement(
        ("compressed-tensors", "accelerate"), "pip install 'gemquant[native]'"
    ),
    "gptq": Requirement(
        ("gptqmodel", "optimum", "accelerate"), "pip install gptqmodel optimum accelerate"
    ),
    "metal": Requirement(("accelerate",), "pip install 'gemquant[native]'"),
}
"""Per container, what transformers itself needs to load it."""

ATTENTION: Mapping[str, str] = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash-attention-2": "flash_attention_2",
    "static": "eager",
    "compiled": "eager",
}
"""Mode → transformers' name of its attention."""


class Transformers(HiddenStatesRuntime, EmbeddingRuntime, SpeedRuntime):
    """A causal language model of transformers, or an embedding model."""

    name: ClassVar[str] = "transformers"
    packages: ClassVar[Sequence[str]] = (
        "transformers",
        "torch",
        "accelerate",
        "compressed-tensors",
        "bitsandbytes",
        "gptqmodel",
        "flash-attn",
    )
    modules: ClassVar[Sequence[str]] = ("transformers.models.auto.modeling_auto",)

    def __init__(self, model: Any, software: str, options: LoadOptions) -> None:
        self.model, self.software = model, software
        self.device = torch.device(options.device)
        self._mode, self._batch_size = options.mode, options.batch_size
        settings = getattr(model, "generation_config", None)
        self.end_tokens = token_ids(getattr(settings, "eos_token_id", None))
        self._dense: Sequence[Path] = ()

    @classmethod
    def requirement(cls, container: str, device: str) -> Requirement:
        """Return the packages that decode the container."""
        del device
        return _REQUIRED.get(container, Requirement())

    @classmethod
    def modes(cls, path: Path, device: str) -> Sequence[Mode]:
        """Return all modes, the impossible ones with the reason."""
        config = read_json_object(path / "config.json")
        model_type = config.get("text_config", config).get("model_type")
        reasons: dict[str, str] = {}
        architecture = model_types().get(model_type)
        if architecture is not None and architecture.eager_attention:
            name = architecture.name
            reasons["sdpa"] = f"transformers has no sdpa for {name}: torch's has no softcap"
        if not device.startswith("cuda"):
            reasons["flash-attention-2"] = "needs an NVIDIA GPU"
            reasons["compiled"] = f"transformers compiles on accelerators only, not on {device}"
        elif installed_version("flash-attn") is None:
            reasons["flash-attention-2"] = "flash-attn not installed; pip install flash-attn"
        return [Mode(name, reasons.get(name)) for name in ATTENTION]

    # ------------------------------------------------------------ loading

    @classmethod
    def load(cls, path: Path, container: str, options: LoadOptions = DEFAULTS) -> Self:
        """Load a folder with ``from_pretrained``, as anyone would."""
        cls.require(path, container, options.device)
        from transformers import AutoModel, AutoModelForCausalLM

        config = read_json_object(path / "config.json")
        embeds = architecture_of_file(config).embeds
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        plain, device = container == "safetensors", options.device
        dtype: Any = options.dtype and getattr(torch, _stored_dtype(path, options.dtype))
        # Placing modules while loading needs accelerate, which a plain folder can do without.
        placed = {} if plain else {"device_map": device}
        attention = {"attn_implementation": ATTENTION[options.mode]} if options.mode else {}
        decoded = container == "metal" and torch.device(device).type != "mps"
        try:
            with _quiet():
                loaded: Any = (AutoModel if embeds else AutoModelForCausalLM).from_pretrained(
                    path,
                    output_loading_info=True,
                    dtype=dtype or ("auto" if plain else torch.float32),
                    local_files_only=True,
                    **placed,
                    **attention,
                )
                model, found = loaded
                _require_no_experts(path, found["unexpected_keys"])
                model.eval()
                if plain:
                    model.to(device)
                dtype = dtype or (model.dtype if plain else torch.float32)
                if decoded:
                    # Decoded, everything comes in the type of the files, whatever was requested.
                    model.to(dtype)
                # compressed-tensors decodes its weights in the first forward pass.
                with torch.inference_mode():
                    model(torch.zeros((1, 1), dtype=torch.int64, device=device))
        except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(f"transformers refuses {path}: {error}") from error
        packages = ("transformers", *cls.requirement(container, device).packages)
        versions = ", ".join(f"{package} {installed_version(package)}" for package in packages)
        software = f"{versions}; {_dtype_name(dtype)} on {device}"
        if decoded:
            software += "; Metal kernel not executed here"
        runtime = cls(model, software, options)
        if embeds:
            runtime._dense = list(with_modules(path, config)[1].weights)
        return runtime

    @classmethod
    def load_checkpoint(cls, checkpoint: Checkpoint, options: LoadOptions) -> Self:
        """Load an original, whatever file it comes from and whatever is merged into it."""
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        dtype: torch.dtype = getattr(torch, options.dtype or "float32")
        config = Skeleton(checkpoint.config).config
        with no_init_weights():
            # Memory that nobody writes to is not taken; the tensors replace it one by one.
            from_config: Any = AutoModelForCausalLM.from_config
            model = from_config(config, dtype=dtype)
        state = {name: checkpoint.tensor(name, dtype) for name in checkpoint.names()}
        missing, unknown = model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        lacking = [name for name in missing if name not in tied]
        if lacking or unknown:
            raise ArtifactError(
                f"{checkpoint.ref}: transformers misses {', '.join(lacking) or 'nothing'} and "
                f"does not expect {', '.join(unknown) or 'anything else'}."
            )
        model.eval().to(options.device)
        version = installed_version("transformers")
        software = f"transformers {version}; {_dtype_name(dtype)} on {options.device}"
        return cls(model, software, options)

    # ------------------------------------------------------------ logits

    def head_rows(self, start: int, stop: int) -> Tensor:
        """Rows of the output matrix; logits are hidden · rowsᵀ before any softcap."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight.detach()[start:stop]

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor) -> Tensor:
        """Return what the head reads, after the final norm: (windows, tokens, hidden)."""
        with _quiet():
            hidden = [
                self.model.base_model(input_ids=window[None].to(self.device), use_cache=False)[0]
                for window in ids
            ]
        return torch.cat(hidden)

    def embeddings(self, ids: Tensor) -> Tensor:
        """Return the mean of hidden states after the folder's Dense modules, float32."""
        from safetensors.torch import load_file

        pooled = self.hidden_states(ids).float().mean(1).cpu()
        for file in self._dense:
            pooled = pooled @ load_file(file)["linear.weight"].float().T
        return pooled

    @torch.inference_mode()
    def logits(self, windows: Sequence[Window]) -> Iterator[Chunk]:
        """Yield the wanted logits, longest windows first: what does not fit fails at once.

        Shorter windows of a batch are padded at their end, which a causal model never sees.
        """
        order = sorted(range(len(windows)), key=lambda n: -len(windows[n].ids))
        for begin in range(0, len(order), self._batch_size):
            batch = order[begin : begin + self._batch_size]
            ids = torch.zeros((len(batch), len(windows[batch[0]].ids)), dtype=torch.int64)
            for row, number in enumerate(batch):
                ids[row, : len(windows[number].ids)] = torch.tensor(windows[number].ids)
            hidden = self.model.model(input_ids=ids.to(self.device), use_cache=False)[0]
            for row, number in enumerate(batch):
                window = windows[number]
                for start in range(window.first, len(window.ids), POSITIONS_AT_ONCE):
                    stop = min(start + POSITIONS_AT_ONCE, len(window.ids))
                    yield Chunk(number, start, self._head(hidden[row, start:stop]))

    @torch.inference_mode()
    def tokens(
        self, prompt: Sequence[int], *, limit: int, suppressed: Collection[int] = ()
    ) -> Iterator[int]:
        """Yield the tokens that greedily follow a prompt."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.get_text_config())
        ids = torch.tensor([list(prompt)], device=self.device)
        for _ in range(limit):
            hidden = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True)[0]
            token = likeliest(self._head(hidden[0, -1:])[0], suppressed)
            yield token
            ids = torch.tensor([[token]], device=self.device)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (positions, hidden): float32, softcap included."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits.float()

    # ------------------------------------------------------------ sampled text

    def sample(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        end_tokens: Sequence[int],
        limit: int,
        compiled: bool,
        put: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """Pass up to ``limit`` sampled tokens to ``put``; end soon after ``stop`` is set."""
        from transformers import StoppingCriteriaList

        drawn: dict[str, Any] = {"temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            drawn = {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or None,
            }
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        ids = torch.tensor([list(prompt)], device=self.device)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            eos_token_id=list(end_tokens),
            streamer=_Streamer(put),
            stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
            do_sample=sampling.temperature > 0,
            **drawn,
            **({"cache_implementation": "static"} if compiled else {}),
        )

    # ------------------------------------------------------------ speed

    def time(self, prompt: Sequence[int], new_tokens: int) -> Timing:
        """Start a new sequence and continue a prompt greedily by exactly ``new_tokens`` tokens."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        # Hooks on the model would be compiled with it, again for every run.
        computed, chosen = _Computed(self.device), _Chosen(self.device)
        config = GenerationConfig(
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,  # as many as requested, wherever the text would end
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static" if self._mode in {"static", "compiled"} else None,
            disable_compile=self._mode != "compiled",
        )
        started = time.perf_counter()
        ids = torch.tensor([list(prompt)], device=self.device)
        with torch.inference_mode():
            sequence = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=LogitsProcessorList([computed]),
                stopping_criteria=StoppingCriteriaList([chosen]),
            )
        tokens = [int(token) for token in sequence[0, len(prompt) :].tolist()]
        ended = time.perf_counter()
        return Timing(tokens, computed.first - started, chosen.first - started, ended - started)

    def peak_device_bytes(self) -> int | None:
        """Peak memory of torch's allocator, on an NVIDIA GPU."""
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated(self.device))


class _Streamer:
    """transformers' streamer of token ids; the first call brings the prompt."""

    def __init__(self, put: Callable[[int], None]) -> None:
        self._put, self._prompt_is_next = put, True

    def put(self, value: Tensor) -> None:
        """Take token ids."""
        if not self._prompt_is_next:
            for token in value.flatten().tolist():
                self._put(token)
        self._prompt_is_next = False

    def end(self) -> None:
        """Nothing is buffered."""


class _Stopped:
    """A stopping criterion that follows an event."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)


class _Clock:
    """Records its first call, all work on the device done.

    first: seconds of ``time.perf_counter``; NaN before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._called = device, False
        self.first = float("nan")

    def _record(self) -> None:
        if self._called:
            return
        self._called = True
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        self.first = time.perf_counter()


class _Computed(_Clock):
    """A logits processor that changes nothing: called when logits exist."""

    def __call__(self, _input_ids: Any, scores: Any) -> Any:
        self._record()
        return scores


class _Chosen(_Clock):
    """A stopping criterion that stops nothing: called when a token has been chosen."""

    def __call__(self, input_ids: Any, _scores: Any, **_: Any) -> Any:
        self._record()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _require_no_experts(path: Path, unread: Iterable[str]) -> None:
    if has_experts(unread):
        raise RuntimeMissingError(
            f"{path}: transformers reads experts as one tensor; these are quantized one by one."
        )


def _stored_dtype(path: Path, dtype: str) -> str:
    """The type requested, or for ``auto`` the one of the folder's floating-point weights."""
    if dtype != "auto":
        return dtype
    config = read_json_object(path / "config.json")
    text = config.get("text_config", config)
    stored = config.get("dtype") or config.get("torch_dtype") or text.get("dtype")
    return str(stored or text.get("torch_dtype") or "float32")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Move banners and progress bars of the libraries to our log; ``-vv`` shows them."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    finally:
        logger.debug("%s", output.getvalue())
