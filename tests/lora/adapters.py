"""Builders of small random adapters, and the same adapters as PEFT sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.lora import Adapter, write_adapter
from rankwise.lora.adapter import FactorPair, factor_pairs

SIZES = {"h.0.q": (24, 24), "h.0.v": (24, 12), "h.1.q": (24, 24), "h.10.q": (24, 24)}


def make_adapter(
    rank: int = 6,
    sizes: dict[str, tuple[int, int]] = SIZES,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **more: Any,
) -> Adapter:
    """Return an adapter with random factors, of linear layers of ``(d_in, d_out)``."""
    generator = torch.Generator().manual_seed(seed)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q", "v"],
        **more,
    }
    tensors = {}
    for name, (d_in, d_out) in sizes.items():
        own = config.get("rank_pattern", {}).get(name, rank)
        for side, shape in (("A", (own, d_in)), ("B", (d_out, own))):
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = values.to(dtype)
    return Adapter(tensors, config)


def write_unchecked(directory: Path, adapter: Adapter) -> Path:
    """Write an adapter without any check."""
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(dict(adapter.config)))
    save_file(dict(adapter.tensors), directory / "adapter_model.safetensors")
    return directory


def product(pair: FactorPair) -> np.ndarray:
    """Return delta-W, ``(d_out, d_in)``, formed as such in float64."""
    a, b = (tensor.double().flatten(1).numpy() for tensor in (pair.a, pair.b))
    return pair.scaling * (b @ a)


def products(adapter: Adapter) -> dict[str, np.ndarray]:
    return {pair.name: product(pair) for pair in factor_pairs(adapter)}


class Mixed(nn.Module):
    """One layer of every kind that PEFT adapts, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 16)
        self.fc = nn.Linear(16, 12)
        self.conv1d = Conv1D(18, 12)  # 12 -> 18
        self.conv2d = nn.Conv2d(2, 12, kernel_size=3)
        self.head = nn.Linear(12, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map ids ``(batch, 4)`` to ``(batch, 3)``."""
        hidden = self.conv1d(torch.tanh(self.fc(self.embed(ids))))  # (batch, 4, 18)
        image = hidden.reshape(len(ids), 2, 6, 6)
        return self.head(torch.tanh(self.conv2d(image)).mean((2, 3)))


TARGETS = ["embed", "fc", "conv1d", "conv2d"]
IDS = torch.arange(20).reshape(5, 4)


def save_mixed(
    directory: Path, dtype: torch.dtype = torch.float32, **settings: Any
) -> torch.Tensor:
    """Save a random adapter of `Mixed` with PEFT; return its logits for ``IDS``."""
    from peft import LoraConfig, get_peft_model

    more = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS,
        "modules_to_save": ["head"],
        **settings,
    }
    model = get_peft_model(Mixed(), LoraConfig(**more))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
                parameter.data = parameter.data.to(dtype)
    model.save_pretrained(directory)
    with torch.no_grad():
        return load_mixed(directory)(IDS)


def load_mixed(directory: Path, trainable: bool = False) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(Mixed(), directory, is_trainable=trainable)


def write_two(directory: Path) -> tuple[Path, Path]:
    """Write two adapters of one base, of ranks 6 and 4; layer 1.q of the first has one direction."""
    sizes = {f"model.{name}": size for name, size in SIZES.items()}
    first = make_adapter(6, sizes)
    first.tensors["base_model.model.model.h.1.q.lora_B.weight"][:, 1:] = 0
    write_adapter(first, directory / "one")
    write_adapter(make_adapter(4, sizes, seed=1), directory / "two")
    return directory / "one", directory / "two"
