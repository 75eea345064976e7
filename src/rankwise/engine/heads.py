"""From a packed batch's hidden states to logits: which token speaks for a sequence, and the layers after it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Head:
    """The end of a sequence classifier.

    Attributes:
        token: whose hidden state stands for its sequence.
        names: its modules, as the model names them.
        logits: from modules by name and hidden states (n, H) to (n, classes).
    """

    token: Literal["first", "last"]
    names: tuple[str, ...]
    logits: Callable[[Modules, torch.Tensor], torch.Tensor]


def find_head(model: nn.Module) -> Head | None:
    """Return the head of a transformers sequence classifier; None if it is of no kind known here."""
    pooler = f"{getattr(model, 'base_model_prefix', '')}.pooler"
    has_pooler = isinstance(getattr(getattr(model, "base_model", None), "pooler", None), nn.Module)
    if hasattr(model, "score"):  # decoders: GPT-2, Llama, Mistral, Qwen, Gemma, ...
        return Head("last", ("score",), lambda at, hidden: at["score"](hidden))
    if hasattr(model, "pre_classifier"):  # DistilBERT
        names = ("pre_classifier", "classifier")
        return Head("first", names, lambda at, hidden: at["classifier"](at["pre_classifier"](hidden).relu()))
    if getattr(getattr(model, "config", None), "classifier_pooling", None) == "cls":  # ModernBERT
        return Head("first", ("head", "classifier"), lambda at, hidden: at["classifier"](at["head"](hidden)))
    if isinstance(getattr(model, "classifier", None), nn.Linear) and has_pooler:  # BERT
        return Head("first", (pooler, "classifier"), lambda at, hidden: at["classifier"](at[pooler](hidden[:, None])))
    if hasattr(model, "classifier"):  # RoBERTa and ELECTRA: takes a sequence's first place itself
        return Head("first", ("classifier",), lambda at, hidden: at["classifier"](hidden[:, None]))
    return None
