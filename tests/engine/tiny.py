"""Tiny random classifiers of many architectures, on disk, with the made-up reviews' tokenizer."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rankwise.models.base_model import BaseModel, load_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from tests.conftest import make_reviews, save_tokenizer

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
WIDE_HEADS = {**GROUPED, "head_dim": 16}
PACKABLE: dict[str, dict[str, Any]] = {
    "bert": SIZE,
    "roberta": SIZE,
    "electra": {**SIZE, "embedding_size": 24},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 80,
    },
    "modernbert": {
        **SIZE,
        "num_hidden_layers": 4,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80},
    "gpt_neox": SIZE,
    "opt": {**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 5},
    "qwen2": GROUPED,
    "qwen3": WIDE_HEADS,
    "gemma": WIDE_HEADS,
    "gemma2": {
        **WIDE_HEADS,
        "num_hidden_layers": 4,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
    },
    "phi": SIZE,
}
TARGETS = {
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]
}  # PEFT cannot adapt pre_classifier


def save_tiny(name: str, directory: Path, **changes: Any) -> Path:
    """Save a tiny base without a head, and its tokenizer."""
    torch.manual_seed(0)
    special = {
        "pad_token_id": 0,
        "cls_token_id": 2,
        "bos_token_id": 2,
        "sep_token_id": 3,
        "eos_token_id": 3,
    }
    settings = {
        **PACKABLE.get(name, SIZE),
        **special,
        "vocab_size": save_tokenizer(directory),
        **changes,
    }
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **settings))
    model.base_model.save_pretrained(directory)
    return directory


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Have PyTorch compute with so many threads; a pack's trials share passes where there is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_tiny(
    name: str,
    directory: Path,
    ranks: tuple[int, ...] = (4,),
    quantization: str = "none",
    targets: list[str] | None = None,
) -> tuple[BaseModel, Encoded, Encoded]:
    """Return a tiny base with 400 training and 40 held-out reviews."""
    data = directory / "reviews.csv"
    make_reviews(800).to_csv(data, index=False)
    task = load_task(SweepConfig(data=data))
    model, targets = str(save_tiny(name, directory)), targets or TARGETS.get(name, ["all-linear"])
    base = load_base(model, task.objective, targets, ranks, quantization=quantization)
    train, held_out = (
        encode(part, base.tokenizer, 64)[0].take(range(count))
        for part, count in ((task.train, 400), (task.held_out, 40))
    )
    return base, train, held_out


CHAT = (
    "{% for m in messages %}{{ 'film ' if m.role == 'user' else 'actor ' }}{{ m.content }}{{ ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}actor {% endif %}"
)


def save_tiny_lm(name: str, directory: Path, **changes: Any) -> Path:
    """Save a tiny causal language model, whose tokenizer ends texts with [SEP] and has a chat template."""
    torch.manual_seed(0)
    special = {
        "pad_token_id": 0,
        "cls_token_id": 2,
        "bos_token_id": 2,
        "sep_token_id": 3,
        "eos_token_id": 3,
    }
    settings = {**PACKABLE[name], **special, "vocab_size": save_tokenizer(directory), **changes}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)).save_pretrained(
        directory
    )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.eos_token, tokenizer.chat_template = "[SEP]", CHAT
    tokenizer.save_pretrained(directory)
    return directory


def make_dialogues(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return made-up dialogues of one or two questions, as ``messages``; an answer repeats words of its question."""
    table, chooser = make_reviews(2 * count, seed), random.Random(seed)
    texts = iter(table["text"])
    dialogues: list[dict[str, Any]] = []
    for _ in range(count):
        turns = []
        for _ in range(chooser.randint(1, 2)):
            asked = next(texts)
            turns += [
                ("user", asked),
                ("assistant", " ".join(asked.split()[: chooser.randint(1, 4)])),
            ]
        dialogues.append(
            {"messages": [{"role": role, "content": content} for role, content in turns]}
        )
    return dialogues


def load_tiny_lm(
    name: str, directory: Path, ranks: tuple[int, ...] = (4,)
) -> tuple[BaseModel, Encoded, Encoded]:
    """Return a tiny causal language model with 400 training and 40 held-out dialogues."""
    data = directory / "dialogues.jsonl"
    pd.DataFrame(make_dialogues(600)).to_json(data, orient="records", lines=True)
    task = load_task(SweepConfig(data=data))
    base = load_base(str(save_tiny_lm(name, directory)), task.objective, ["all-linear"], ranks)
    train, held_out = (
        task.encoder(part, base.tokenizer, 64)[0] for part in (task.train, task.held_out)
    )
    return base, train.take(range(400)), held_out.take(range(40))
