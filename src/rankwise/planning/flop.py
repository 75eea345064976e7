"""The work of training an adapter, counted in floating-point operations (FLOP)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

from rankwise.models.targets import linear_sizes
from rankwise.planning.params import stacked_experts


@dataclass(frozen=True)
class TrainingWork:
    """The useful work of training an adapter on a frozen base.

    A product with a matrix of n weights takes 2 n FLOP for each token (Kaplan et al. 2020, "Scaling
    laws for neural language models", section 2.1). A frozen matrix has it twice: forward, and for
    the gradient of its input. A trained one has it a third time, for its own gradient. Norms,
    activations, and what an engine pads or computes again are not counted.

    Attributes:
        frozen: weights of the base's linear layers that a token goes through.
        output: weights of a language model's output layer, for the supervised tokens alone.
        attention: widths of the attention of all blocks (heads times their width), added up.
        causal: whether a token attends to itself and earlier tokens alone: half of the square.
    """

    frozen: int
    output: int
    attention: int
    causal: bool

    def flop(self, lengths: Sequence[int], supervised: int, adapter: int) -> float:
        """Return the FLOP of training once on sequences.

        Args:
            lengths: their tokens.
            supervised: tokens with a loss; 0 for a classifier, whose head is small.
            adapter: parameters of the adapter.
        """
        # Scores and their sums of values: two products forward, four for their gradients.
        squares = 12 * sum(length * length for length in lengths) * self.attention
        tokens = sum(lengths) * (4 * self.frozen + 6 * adapter)
        return float(tokens + 4 * supervised * self.output + squares / (2 if self.causal else 1))


def training_work(
    model: nn.Module, task_type: str, repeats: Callable[[str], int] = lambda name: 1
) -> TrainingWork:
    """Count the work of a base model, on any device and in any precision.

    Args:
        model: a transformers model without adapters.
        task_type: PEFT's ``CAUSAL_LM`` or ``SEQ_CLS``.
        repeats: returns how many layers of the whole model one of a shortened model stands for.
    """
    config: Any = model.config
    text = config.get_text_config()
    frozen = 0
    for name, (d_in, d_out) in linear_sizes(model).items():
        if any(part.isdigit() for part in name.split(".")):  # in a block, not a head
            frozen += d_in * d_out * repeats(name)
    for name, entries in stacked_experts(model).items():
        experts = model.get_parameter(name).shape[0]
        chosen = getattr(text, "num_experts_per_tok", None) or experts
        frozen += entries // experts * chosen * repeats(name)
    layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    output = layer.weight.numel() if task_type == "CAUSAL_LM" and layer is not None else 0
    causal = config.model_type not in ENCODERS or getattr(config, "is_decoder", False)
    return TrainingWork(frozen, output, _attention_widths(text), causal)


def _attention_widths(config: Any) -> int:
    """Return the widths of the attention of all blocks, added up; 0 for a model without any."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return int(config.num_hidden_layers * width)
