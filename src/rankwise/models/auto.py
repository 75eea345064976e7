"""Facts about Hugging Face models that several components need: classes, heads, positions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "IMAGE_CLS": "AutoModelForImageClassification",
    "SPEECH_SEQ2SEQ": "AutoModelForSpeechSeq2Seq",
    "IMAGE_TEXT_TO_TEXT": "AutoModelForImageTextToText",
}
"""The transformers class that loads a model for each task type (PEFT's names of tasks)."""

CLASSIFIER_HEADS = ("classifier", "score")
"""Endings of the module names that PEFT trains in full for classification (DistilBERT has two)."""


def trained_heads(task_type: str) -> tuple[str, ...]:
    """Return the endings of the module names that PEFT always trains in full for a task."""
    return CLASSIFIER_HEADS if task_type in ("SEQ_CLS", "TOKEN_CLS") else ()


def position_tables(model: "nn.Module") -> "Iterator[nn.Embedding]":
    """Yield the tables of learned positions of BERT-like models."""
    from torch import nn

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            yield module


def first_position(table: "nn.Embedding") -> int:
    """Return the position of a text's first token; RoBERTa counts from after the padding index."""
    return 0 if table.padding_idx is None else table.padding_idx + 1
