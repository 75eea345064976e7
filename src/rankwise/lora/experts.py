"""Adapters on parameters that hold the weights of several experts (``target_parameters``).

PEFT keeps the factors of E experts in one A ``(E * r, d_in)``, expert after expert, and one B
``(d_out, r * E)``, where the experts alternate from column to column (``ParamWrapper`` in
``peft/tuners/lora/layer.py``). Where it adapts two parameters of a module, the wrapper of the
second holds that of the first, whose tensors so have ``base_layer`` in their names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from rankwise.lora.adapter import FactorPair

WRAPPED = ".base_layer"
ORDER = ("gate_up_proj", "gate_proj", "up_proj", "w1", "w3", "down_proj", "w2")
"""Names of experts' parameters in the order in which transformers' models have them."""


def stacked_parameters(config: Mapping[str, Any], layers: Iterable[str]) -> dict[str, str]:
    """Return ``{layer: parameter}`` of the layers that are modules with adapted parameters.

    A parameter whose place in its module is not known has the name of the layer.

    Args:
        config: Content of ``adapter_config.json``.
        layers: Names of all layers with factors, with ``base_layer`` in wrapped ones.
    """
    targets = [str(target).rpartition(".") for target in config.get("target_parameters") or ()]
    depths: dict[str, list[str]] = {}
    for layer in sorted(layers, key=len, reverse=True):  # the innermost, which is the first, first
        depths.setdefault(layer.replace(WRAPPED, ""), []).append(layer)
    found = {}
    for module, wrappers in depths.items():
        names = {leaf for front, _, leaf in targets if f".{module}".endswith(f".{front}")}
        if not names:
            continue
        is_known = len(names) == len(wrappers) and names <= {*ORDER}
        ordered = sorted(names, key=ORDER.index) if is_known else []
        for index, layer in enumerate(wrappers):
            found[layer] = f"{module}.{ordered[index]}" if ordered else layer
    return found


def split_experts(pair: "FactorPair", experts: int) -> "list[FactorPair]":
    """Return the factors of each expert, named by its number, from those of a parameter."""
    a = pair.a.reshape(experts, -1, pair.a.shape[1])  # (experts, r, d_in)
    b = pair.b.reshape(pair.b.shape[0], -1, experts)  # (d_out, r, experts)
    return [
        replace(pair, name=f"{pair.name}.{index}", a=a[index], b=b[:, :, index], experts=experts)
        for index in range(experts)
    ]


def join_experts(pairs: "Sequence[FactorPair]") -> "dict[str, Tensor]":
    """Return the tensors of parameters from the factors of all their experts, of one rank."""
    import torch

    parameters: dict[tuple[str, str], list[FactorPair]] = {}
    for pair in sorted(pairs, key=lambda pair: int(pair.name.rpartition(".")[2])):
        parameters.setdefault((pair.key_a, pair.key_b), []).append(pair)
    tensors = {}
    for (key_a, key_b), experts in parameters.items():
        tensors[key_a] = torch.cat([pair.a for pair in experts])  # (experts * r, d_in)
        b = torch.stack([pair.b for pair in experts], dim=2)  # (d_out, r, experts)
        tensors[key_b] = b.flatten(1)
    return tensors
