"""A finished adapter as packed passes take it."""

import copy

import torch
from torch import nn

from rankwise.engine.fused.linear import Factors
from rankwise.lora.adapter import PEFT_PREFIX, Adapter, factor_pairs
from rankwise.models.base_model import BaseModel


class Loaded:
    """An adapter's factors, and its own copies of the modules trained in full; to score with, not to train.

    Args:
        base: the frozen base, without adapters.
        adapter: trained over this base.
    """

    def __init__(self, base: BaseModel, adapter: Adapter) -> None:
        device = next(base.model.parameters()).device
        nothing = torch.empty(0)  # where training would gather gradients
        self.factors: dict[str, Factors] = {
            pair.name: Factors(
                pair.a.to(device), pair.b.t().contiguous().to(device), nothing, nothing, pair.scaling
            )
            for pair in factor_pairs(adapter)
        }  # fmt: skip
        self.head: dict[str, nn.Module] = {}
        for name in base.trained_in_full:
            start = f"{PEFT_PREFIX}{name}."
            state = {
                key.removeprefix(start): value
                for key, value in adapter.tensors.items()
                if key.startswith(start)
            }
            self.head[name] = copy.deepcopy(base.model.get_submodule(name))
            self.head[name].load_state_dict(state)
