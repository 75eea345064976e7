"""Adapters whose truncations have a known effect: only one layer and few directions matter."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny_models import make_dialogues, save_tiny_lm


def save_lm(directory: Path) -> Path:
    """Save a tiny Llama, and return its directory."""
    return save_tiny_lm("llama", directory / "base")


def save_adapter(
    model: Path, directory: Path, rank: int = 8, steps: int = 60, **settings: Any
) -> Path:
    """Train an adapter on the made-up dialogues' words for a few steps with PEFT, and save it."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "v_proj", "down_proj"],
        **settings,
    )
    peft_model: Any = get_peft_model(base, config)
    optimizer = torch.optim.AdamW(peft_model.parameters(), lr=1e-2)
    tokens = torch.randint(4, 20, (16, 12))
    for _ in range(steps):
        loss = peft_model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    peft_model.save_pretrained(directory)
    return directory


def save_dialogues(directory: Path, count: int = 160) -> Path:
    """Save made-up dialogues, and return the file."""
    path = directory / "held-out.jsonl"
    pd.DataFrame(make_dialogues(count)).to_json(path, orient="records", lines=True)
    return path
