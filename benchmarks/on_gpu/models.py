"""Random models of published sizes, built on the device, and what a token costs in them.

The numbers are those of the ``config.json`` of each model on huggingface.co, by its name there.
Weights do not matter for speed and memory, so nothing is downloaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rankwise.models.base_model import BaseModel
from rankwise.models.config import PrecisionName
from rankwise.models.targets import find_targets
from rankwise.tasks.losses import CompletionObjective

WORDS = 1500
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}


@dataclass(frozen=True)
class Size:
    """A published size: the name of the model, and the numbers of its config."""

    name: str
    config: dict[str, Any]

    def number(self, key: str) -> int:
        """Return a whole number of the config."""
        return int(self.config[key])

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.number("hidden_size") // self.number("num_attention_heads")


SIZES = {
    "135M": Size(
        "HuggingFaceTB/SmolLM2-135M",
        {
            **LLAMA,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "1B": Size(
        "meta-llama/Llama-3.2-1B",
        {
            **LLAMA,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "8B": Size(
        "meta-llama/Llama-3.1-8B",
        {
            **LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "tie_word_embeddings": False,
        },
    ),
    "MoE": Size(
        "allenai/OLMoE-1B-7B-0924",
        {
            "model_type": "olmoe",
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "vocab_size": 50304,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
}
TINY = {
    name: Size(
        f"{size.name}, cut down",
        {
            **size.config,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
            **({"num_experts": 4, "num_experts_per_tok": 2} if name == "MoE" else {}),
        },
    )
    for name, size in SIZES.items()
}
"""The same families, small enough for a test on a CPU."""


@dataclass(frozen=True)
class Scale:
    """What the parts of the benchmark run on: sizes, device, precision, lengths, steps."""

    sizes: dict[str, Size]
    device: torch.device
    dtype: torch.dtype
    lengths: tuple[int, ...]
    batch_tokens: int
    steps: int

    @property
    def precision(self) -> PrecisionName:
        """Name of the precision, as in the settings of a sweep."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of made-up words; it also pads."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(WORDS)}
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    marks = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=8192, **marks)


def model_config(size: Size) -> Any:
    """Return the config of a size for transformers."""
    fields = dict(size.config)
    kind = fields.pop("model_type")
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return AutoConfig.for_model(kind, **fields, **ends)


def random_model(size: Size, scale: Scale) -> Any:
    """Build a model on the device with random weights of a fixed seed."""
    torch.manual_seed(0)
    with scale.device:
        return AutoModelForCausalLM.from_config(
            model_config(size), dtype=scale.dtype, attn_implementation="sdpa"
        )


def random_base(size: Size, scale: Scale) -> BaseModel:
    """Build a frozen base as `rankwise.models.base_model.load_base` would load it."""
    model = random_model(size, scale)
    model.requires_grad_(False)
    targets = find_targets(model, "all-linear", ())
    limit = size.number("max_position_embeddings")
    objective = CompletionObjective()
    return BaseModel(model, tokenizer(), size.name, objective, (), (), targets, limit)


def save_model(size: Size, scale: Scale, directory: Path) -> None:
    """Save a random model with its tokenizer."""
    random_model(size, scale).save_pretrained(directory)
    tokenizer().save_pretrained(directory)


def save_config(size: Size, directory: Path) -> None:
    """Save the config alone, which is all that a plan needs."""
    model_config(size).save_pretrained(directory)
    tokenizer().save_pretrained(directory)


def linear_entries(size: Size) -> int:
    """Count the weights of linear layers that a token goes through, without the head."""
    hidden, inner = size.number("hidden_size"), size.number("intermediate_size")
    values = size.head_dim * size.number("num_key_value_heads")
    experts = size.config.get("num_experts_per_tok", 1)
    router = hidden * size.config.get("num_experts", 0)
    block = 2 * hidden * hidden + 2 * hidden * values + 3 * experts * hidden * inner + router
    return size.number("num_hidden_layers") * block


def flop_of(size: Size, lengths: list[int], learnt: int, adapter_entries: int) -> dict[str, float]:
    """Count the useful work of training on sequences, in FLOP, by kind.

    Frozen weights: forward and the gradient of the input. Adapters: forward and both gradients.
    Causal attention: two products forward and four backward over half of each square. The head:
    forward and the gradient of its input, for the learnt tokens alone. Whatever a way of training
    recomputes, pads or does in vain is not counted.
    """
    tokens = sum(lengths)
    width = size.head_dim * size.number("num_attention_heads")
    squares = sum(length * length for length in lengths)
    head = size.number("hidden_size") * size.number("vocab_size")
    return {
        "linear layers": 4.0 * tokens * linear_entries(size),
        "adapters": 6.0 * tokens * adapter_entries,
        "attention": 6.0 * squares * width * size.number("num_hidden_layers"),
        "head": 4.0 * learnt * head,
    }
