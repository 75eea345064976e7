"""Frozen linear layers with the LoRA adapters of several trials, each on its own token rows.

A packed batch is one matrix of T token rows. Trial k owns the T_k rows of its segment::

     x (T, d_in)                                     y (T, d_out)
    +------------+                                  +------------+
    | x_0, T_0   |--- low_0 = s_0 x_0 A_0^T ------->| y_0 += low_0 B_0^T
    +------------+                                  +------------+
    | x_1, T_1   |--- low_1 = s_1 x_1 A_1^T ------->| y_1 += low_1 B_1^T
    +------------+                                  +------------+
          |                                                ^
          +---- frozen, all T rows in one product: x W^T + b

    backward, from dy:    dx           = dy W                   all rows in one product
                          B_k^T.grad  += low_k^T dy_k           into the trial's buffer
                          dlow_k       = dy_k B_k
                          A_k.grad    += s_k dlow_k^T x_k       into the trial's buffer
                          dx_k        += dlow_k (s_k A_k)

Autograd would copy each slice and make a new tensor for each gradient. Here every product adds to
the place where its result belongs. W gets no gradient. Layers that share an input, such as query,
key and value, run together: their A's are stacked, so that three products with a thin matrix,
whose overhead exceeds their arithmetic, become one.

A CPU goes trial by trial, as above (`LoraByTrial`). A GPU runs the same products for all trials at
once (`StackedLora`), from copies of the factors that are made once a step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rankwise.engine.fused.dropout import Dropout
from rankwise.engine.fused.frozen import FrozenLayers
from rankwise.engine.fused.lora_by_trial import LoraByTrial
from rankwise.engine.fused.lora_stacked import StackedLora
from rankwise.engine.fused.segments import LoraSettings, Segments

# Sibling layers to which modelling code passes the same input, in the order in which it calls them.
SHARED_INPUT = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)


class FusedLinear(nn.Module):
    """Replaces a linear layer: frozen layer on all rows, each trial's factors on its segment."""

    def __init__(self, base: nn.Module, name: str, segments: Segments) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.segments = segments
        # The layers to compute when this one is called: itself, then siblings with the same input.
        self.group: Sequence[FusedLinear] = [self]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b + s (x A^T) B^T``, (..., d_in) to (..., d_out)."""
        segments = self.segments
        computed_from, output = segments.sibling_outputs.pop(self.name, (None, None))
        if computed_from is x and output is not None:
            return output
        # Dropout gives each layer an input of its own.
        dropout = segments.dropout(self.name) if self.training else None
        group = self.group if dropout is None else [self]
        ys = self._outputs(x, group, dropout)
        for layer, y in zip(group[1:], ys[1:], strict=True):
            segments.sibling_outputs[layer.name] = (x, y)
        return ys[0]

    def _outputs(
        self, x: torch.Tensor, group: Sequence["FusedLinear"], dropout: Dropout | None
    ) -> tuple[torch.Tensor, ...]:
        segments = self.segments
        keep = segments.settings.keep_dequantized
        frozen = FrozenLayers([layer.base for layer in group], keep)
        names = tuple(layer.name for layer in group)
        stacked = segments.stacked(names, x.numel() // x.shape[-1])
        ys: tuple[torch.Tensor, ...]
        if stacked is None:
            factors = [[adapter[name] for name in names] for adapter in segments.adapters]
            ys = LoraByTrial.apply(
                x, segments.grad_anchor, frozen, factors, segments.bounds, dropout
            )
        else:
            ys = StackedLora.apply(x, segments.grad_anchor, frozen, *stacked, dropout)
        return ys


@contextmanager
def fused_layers(
    model: nn.Module, names: Sequence[str], settings: LoraSettings | None = None
) -> Iterator[Segments]:
    """Replace the named layers by `FusedLinear` until the end of the ``with`` block."""
    settings = LoraSettings() if settings is None else settings
    segments = Segments(settings)
    originals = {name: model.get_submodule(name) for name in names}
    layers = {name: FusedLinear(module, name, segments) for name, module in originals.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
        parent, _, leaf = name.rpartition(".")
        for siblings in SHARED_INPUT:
            if leaf in siblings:
                paths = [f"{parent}.{sibling}" for sibling in siblings]
                group = [layers[path] for path in paths if path in layers]
                group[0].group = group
    grouped = {member.name for layer in layers.values() for member in layer.group[1:]}
    firsts = [layer for name, layer in layers.items() if name not in grouped]
    settings.groups = [tuple(member.name for member in layer.group) for layer in firsts]
    try:
        yield segments
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
