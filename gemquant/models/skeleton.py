"""Run a Gemma one decoder layer at a time, with the library's own layers and no weights held.

The model is built on the meta device, so it costs no memory. Its layers are replaced by recorders
for one cheap call, which yields the keyword arguments (masks and rotary tables differ by layer
type) that the library itself would pass; each layer then runs on weights given at the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gemquant.models.architecture import architecture_of, library_config
from gemquant.models.experts import expert_number, run_experts

Observer = Callable[[Tensor], None]
SharedStates = dict[str, tuple[Tensor, Tensor]]
"""Keys and values that later layers read, by kind of attention: (windows, heads, tokens, size)."""
_SHARED = "shared_kv_states"


class _Recorder(nn.Module):
    """Stands in for a decoder layer: keeps the keyword arguments and returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden: Tensor, *_: Any, **arguments: Any) -> Tensor:
        self.arguments = {name: value for name, value in arguments.items() if value is not None}
        return hidden


@dataclass(frozen=True)
class _Emptied:
    """The library's model on the meta device, its layers and final norm taken out of it."""

    config: Any
    model: Any
    layers: list[nn.Module]
    norm: nn.Module


class Skeleton:
    """A Gemma without weights, whose layers run one at a time.

    text_config: flat text configuration. Computation is in ``dtype`` on ``device``. The library is
    imported when it is first asked to compute. eager: attention of plain operations with an
    additive mask, as is fit for tracing.
    """

    def __init__(
        self,
        text_config: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        eager: bool = False,
    ) -> None:
        self._eager = eager
        self.device = torch.device(device)
        self.dtype = dtype
        self.layers: int = text_config["num_hidden_layers"]
        self.architecture = architecture_of(text_config)
        self.text_config = text_config
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        self._expert_observers: Mapping[str, Observer] = {}

    @cached_property
    def config(self) -> Any:
        """The library's own configuration."""
        return self._emptied.config

    @cached_property
    def _emptied(self) -> _Emptied:
        config_class, model_class = self.architecture.library()
        config = config_class(**library_config(self.text_config))
        eager = self._eager or self.architecture.eager_attention
        config._attn_implementation = "eager" if eager else "sdpa"
        config.use_cache = False
        with torch.device("meta"):
            model = model_class(config).eval().to(self.dtype)
        layers, norm = list(model.layers), model.norm
        model.layers = nn.ModuleList(_Recorder() for _ in layers)
        model.norm = nn.Identity()
        model.rotary_emb = type(model.rotary_emb)(config=config).to(self.device)
        self.architecture.without_inputs(model)
        return _Emptied(config, model, layers, norm)

    @property
    def logit_softcap(self) -> float | None:
        """Bound of the final logits: softcap · tanh(logit / softcap); None where there is none."""
        return getattr(self.config, "final_logit_softcapping", None)

    def embed(self, rows: Tensor) -> Tensor:
        """Scale embedding rows by √hidden, rounded to the compute type as the library rounds it."""
        scale = torch.tensor(math.sqrt(self.config.hidden_size), dtype=torch.float32)
        return rows.to(self.device, self.dtype) * scale.to(self.dtype).to(self.device)

    @torch.no_grad()
    def per_layer_input(
        self, embedded: Tensor, rows: Tensor, projection: Tensor, norm: Tensor
    ) -> Tensor:
        """One layer's own input of some tokens, (tokens, narrow), as the library computes it.

        embedded: their embeddings, scaled. rows: their rows of the second table, the layer's part.
        projection, norm: the weights that make the layer's part of the embeddings.
        """
        width = rows.shape[-1]
        projected = torch.nn.functional.linear(embedded, projection) * embedded.shape[-1] ** -0.5
        projected = torch.func.functional_call(
            self._emptied.model.per_layer_projection_norm, {"weight": norm}, (projected,)
        )
        scale = torch.tensor(width**0.5, dtype=torch.float32).to(rows.dtype)
        own: Tensor = (projected + rows * scale) * 2.0**-0.5
        return own

    @torch.no_grad()
    def layer(
        self,
        index: int,
        weights: Mapping[str, Tensor],
        hidden: Tensor,
        *,
        own: Tensor | None = None,
        shared: SharedStates | None = None,
        experts: Callable[[str], Tensor] | None = None,
    ) -> Tensor:
        """Run decoder layer ``index`` on hidden states (windows, tokens, hidden).

        weights: every parameter of the layer by short name, in the compute type. own: its input
        besides hidden states, where it has one. shared: what layers share of keys and values, which
        this one reads or adds to. experts: gives the weights of experts, where it has some.
        """
        layer: Any = self._emptied.layers[index]
        arguments = self._layer_arguments(hidden.shape[1])[index]
        if _SHARED in arguments:
            states = type(arguments[_SHARED])(shared)
            arguments = {**arguments, _SHARED: states}
        if experts is not None:
            layer.experts.forward = lambda inputs, chosen, shares: run_experts(
                inputs,
                chosen,
                shares,
                weights=experts,
                activation=layer.experts.act_fn,
                observers=self._expert_observers,
            )
        positional = (hidden,) if own is None else (hidden, own)
        try:
            output: Tensor = torch.func.functional_call(layer, dict(weights), positional, arguments)
        finally:
            if experts is not None:
                del layer.experts.forward  # and with it the weights
        if shared is not None and _SHARED in arguments:
            shared.update(states)
        return output

    def module(self, index: int) -> nn.Module:
        """The library's decoder layer ``index``, without weights."""
        return self._emptied.layers[index]

    def arguments(self, index: int, tokens: int) -> Mapping[str, Any]:
        """What the library passes to decoder layer ``index`` with hidden states of one length."""
        return self._layer_arguments(tokens)[index]

    @torch.no_grad()
    def final_norm(self, weight: Tensor, hidden: Tensor) -> Tensor:
        """Apply the norm before the head."""
        output: Tensor = torch.func.functional_call(
            self._emptied.norm, {"weight": weight}, (hidden,)
        )
        return output

    @contextmanager
    def observing(
        self,
        index: int,
        *,
        inputs: Mapping[str, Observer],
        outputs: Callable[[str, Tensor], None] | None = None,
    ) -> Iterator[None]:
        """Show a layer's activations to observers while the context is open.

        inputs: short name of a module, or of an expert's linear → observer of its first argument.
        outputs: called with (short module name, output) of every module inside the layer.
        """
        layer = self._emptied.layers[index]
        handles = []
        self._expert_observers = {n: o for n, o in inputs.items() if expert_number(n) is not None}
        for name, observe in inputs.items():
            if name in self._expert_observers:
                continue
            module = layer.get_submodule(name)
            handles.append(
                module.register_forward_pre_hook(
                    lambda _module, args, observe=observe: observe(args[0])
                )
            )
        if outputs is not None:
            for name, module in layer.named_modules():
                handles.append(
                    module.register_forward_hook(
                        lambda _module, _args, out, name=name: outputs(
                            name, out[0] if isinstance(out, tuple) else out
                        )
                    )
                )
        try:
            yield
        finally:
            self._expert_observers = {}
            for handle in handles:
                handle.remove()

    @contextmanager
    def replacing(
        self, index: int, modules: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> Iterator[None]:
        """Let functions stand for some modules of a layer while the context is open.

        modules: short module name → what makes its output of its input. Their weights may then be
        left out of what ``layer`` is given.
        """
        layer = self._emptied.layers[index]
        replaced = [layer.get_submodule(name) for name in modules]
        for module, function in zip(replaced, modules.values(), strict=True):
            module.forward = function
        try:
            yield
        finally:
            for module in replaced:
                del module.forward

    @torch.no_grad()
    def _layer_arguments(self, tokens: int) -> list[dict[str, Any]]:
        if tokens not in self._arguments:
            probe = torch.zeros(
                1, tokens, self.config.hidden_size, dtype=self.dtype, device=self.device
            )
            self._emptied.model(inputs_embeds=probe, use_cache=False)
            self._arguments = {tokens: [layer.arguments for layer in self._emptied.model.layers]}
        return self._arguments[tokens]
