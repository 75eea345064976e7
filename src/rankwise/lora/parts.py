"""The parts of an adapter besides its factors: modules, rows and vectors that it trains in full."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.errors import RequestError, some
from rankwise.lora.adapter import FACTOR_NAME, PEFT_PREFIX, Adapter

if TYPE_CHECKING:
    from torch import Tensor

NAMED = re.compile(
    r"(?P<front>.+\.(lora_(embedding_)?[AB]|lora_magnitude_vector|trainable_tokens_delta))"
    r"\.(?P<adapter>(?!(weight|bias)$)[^.]+)(?P<end>(\.weight|\.bias)?)"
)
IN_FULL = re.compile(r"(?P<front>.+)\.modules_to_save\.(?P<adapter>[^.]+)(?P<end>\..+)")
WRAPPERS = re.compile(r"^module\.|\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
"""What DeepSpeed, torch.compile, FSDP and checkpointing put into names."""
BASE = "weights of the base model"
KINDS = (
    (r".+\.lora_magnitude_vector(\.weight)?", "magnitudes of DoRA"),
    (r".+\.lora_B\.bias", "biases of B (lora_bias)"),
    (r".+\.trainable_tokens_delta", "rows of tokens (trainable_token_indices)"),
    (r".+\.bias", "biases"),
    (r".+\.(base_layer|original_module|trainable_tokens_original)\..+", BASE),
    (r".+", "whole layers (modules_to_save)"),
)
"""Kinds of tensors by their names, as regular expressions; the first that matches decides."""


@dataclass(frozen=True)
class Part:
    """Tensors of one layer that are no factors.

    Attributes:
        layer: Name of the layer in the base model.
        kind: What they are, one of `KINDS`.
        params: Number of their entries.
    """

    layer: str
    kind: str
    params: int


def other_parts(adapter: Adapter) -> list[Part]:
    """Return the parts of an adapter that are no factors A and B, in the order of their kinds."""
    sizes: dict[tuple[str, str], int] = {}
    for key, tensor in adapter.tensors.items():
        if not FACTOR_NAME.fullmatch(key):
            kind = next(kind for pattern, kind in KINDS if re.fullmatch(pattern, key))
            name = re.split(r"\.lora_|\.token_adapter|\.base_layer|\.original_module", key)[0]
            layer = re.sub(r"\.(weight|bias)$", "", name.removeprefix(PEFT_PREFIX))
            sizes[layer, kind] = sizes.get((layer, kind), 0) + tensor.numel()
    order = [kind for _, kind in KINDS]
    parts = [Part(layer, kind, params) for (layer, kind), params in sizes.items()]
    return sorted(parts, key=lambda part: (order.index(part.kind), part.layer))


def describe_parts(parts: list[Part]) -> list[str]:
    """Return a sentence for each kind of parts: their layers, and that no figure counts them."""
    kinds: dict[str, list[Part]] = {}
    for part in parts:
        kinds.setdefault(part.kind, []).append(part)
    sentences = []
    for kind, members in kinds.items():
        params = sum(part.params for part in members)
        layers = some((part.layer for part in members), 4)
        sentences.append(
            f"The adapter also has {kind}, which are not in these figures: {layers}; "
            f"{params:,} parameters."
        )
    return sentences


def plain_names(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return tensors under the names that PEFT's ``save_pretrained`` gives them.

    A state dict that was saved otherwise has the adapter's name in its names
    (``x.lora_A.default.weight``), and what wrappers of the model put there.

    Raises:
        RequestError: The tensors are of more than one adapter.
    """
    renamed: dict[str, Tensor] = {}
    adapters: dict[str, None] = {}
    for key, tensor in tensors.items():
        name = WRAPPERS.sub("", key)
        for pattern in (NAMED, IN_FULL):
            if match := pattern.fullmatch(name):
                adapters[match["adapter"]] = None
                name = match["front"] + match["end"]
        name = re.sub(r"(\.lora_magnitude_vector)\.weight$", r"\1", name)
        if len(adapters) > 1:
            raise RequestError(
                f"its tensors are of more than one adapter ({', '.join(adapters)}); save one with "
                f"save_pretrained(directory, selected_adapters=[{next(iter(adapters))!r}])"
            )
        renamed[name] = tensor
    return renamed
