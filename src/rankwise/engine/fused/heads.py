"""From a packed batch's hidden states to logits: which tokens speak for a sequence, and the layers after it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Head:
    """The end of a sequence classifier or of a causal language model.

    Attributes:
        token: whose hidden state stands for its sequence; "places" are those whose next token is to be told.
        names: its modules, as the model names them.
        logits: from modules by name and hidden states (n, H) to (n, classes).
    """

    token: Literal["first", "last", "places"]
    names: tuple[str, ...]
    logits: Callable[[Modules, torch.Tensor], torch.Tensor]


def find_head(model: nn.Module) -> Head | None:
    """Return the head of a transformers model; None if it is of no kind known here."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if output is not None:  # causal language models
        name = next(name for name, module in model.named_modules() if module is output)
        cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2, section 2
        if cap is None:
            return Head("places", (name,), lambda at, hidden: at[name](hidden))
        return Head("places", (name,), lambda at, hidden: cap * torch.tanh(at[name](hidden) / cap))
    pooler = f"{getattr(model, 'base_model_prefix', '')}.pooler"
    has_pooler = isinstance(getattr(getattr(model, "base_model", None), "pooler", None), nn.Module)
    if hasattr(model, "score"):  # decoders: GPT-2, Llama, Mistral, Qwen, Gemma, ...
        return Head("last", ("score",), lambda at, hidden: at["score"](hidden))
    if hasattr(model, "pre_classifier"):  # DistilBERT
        names = ("pre_classifier", "classifier")
        return Head(
            "first", names, lambda at, hidden: at["classifier"](at["pre_classifier"](hidden).relu())
        )
    if getattr(getattr(model, "config", None), "classifier_pooling", None) == "cls":  # ModernBERT
        return Head(
            "first", ("head", "classifier"), lambda at, hidden: at["classifier"](at["head"](hidden))
        )
    if isinstance(getattr(model, "classifier", None), nn.Linear) and has_pooler:  # BERT
        return Head(
            "first",
            (pooler, "classifier"),
            lambda at, hidden: at["classifier"](at[pooler](hidden[:, None])),
        )
    if hasattr(model, "classifier"):  # RoBERTa and ELECTRA: takes a sequence's first place itself
        return Head("first", ("classifier",), lambda at, hidden: at["classifier"](hidden[:, None]))
    return None
