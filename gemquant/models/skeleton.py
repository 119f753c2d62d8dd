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

from gemquant.models.architecture import architecture_of

Observer = Callable[[Tensor], None]


class _Recorder(nn.Module):
    """Stands in for a decoder layer: keeps the keyword arguments and returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
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

    config: flat text configuration. Computation is in ``dtype`` on ``device``. The library is
    imported when it is first asked to compute. eager: attention of plain operations with an
    additive mask, as is fit for tracing.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        eager: bool = False,
    ) -> None:
        self._eager = eager
        self.device = torch.device(device)
        self.dtype = dtype
        self.layers: int = config["num_hidden_layers"]
        self.architecture = architecture_of(config)
        self._text_config = config
        self._arguments: dict[int, list[dict[str, Any]]] = {}

    @cached_property
    def config(self) -> Any:
        """The library's own configuration."""
        return self._emptied.config

    @cached_property
    def _emptied(self) -> _Emptied:
        config_class, model_class = self.architecture.library()
        config = config_class(**self._text_config)
        eager = self._eager or self.architecture.eager_attention
        config._attn_implementation = "eager" if eager else "sdpa"
        config.use_cache = False
        with torch.device("meta"):
            model = model_class(config).eval().to(self.dtype)
        layers, norm = list(model.layers), model.norm
        model.layers = nn.ModuleList(_Recorder() for _ in layers)
        model.norm = nn.Identity()
        model.rotary_emb = type(model.rotary_emb)(config=config).to(self.device)
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
    def layer(self, index: int, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Run decoder layer ``index`` on hidden states (windows, tokens, hidden).

        weights: every parameter of the layer by short name, in the compute type.
        """
        arguments = self._layer_arguments(hidden.shape[1])[index]
        output: Tensor = torch.func.functional_call(
            self._emptied.layers[index], dict(weights), (hidden,), arguments
        )
        return output

    def module(self, index: int) -> nn.Module:
        """The library's decoder layer ``index``, without weights."""
        return self._emptied.layers[index]

    def arguments(self, index: int, tokens: int) -> Mapping[str, Any]:
        """What the library passes to decoder layer ``index`` beside hidden states of one length."""
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

        inputs: short module name → observer of its first argument.
        outputs: called with (short module name, output) of every module inside the layer.
        """
        layer = self._emptied.layers[index]
        handles = []
        for name, observe in inputs.items():
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
