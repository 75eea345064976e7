"""Conversion of adapters trained over a changed base weight to adapters of the original base."""

import torch

from rankwise.lora.adapter import Adapter, factor_pairs, replace_pairs


def for_original_base(trained: Adapter, initial: Adapter) -> Adapter:
    """Return the plain LoRA adapter, of twice the rank, with the same effect on the original base.

    PiSSA (Meng et al. 2024, section 3) and OLoRA (Büyükakyüz 2024) take ``s * B0 @ A0`` out of
    the base weight W and start the adapter there. After training the layer is
    ``W - s * B0 @ A0 + s * B @ A``, which is ``W + s * [B, -B0] @ [A; A0]``. PEFT does the same
    with ``path_initial_model_for_weight_conversion``.

    Args:
        trained: The adapter after training.
        initial: The adapter before training, of the same rank and on the same layers.
    """
    before = {pair.name: pair for pair in factor_pairs(initial)}
    doubled = []
    for pair in factor_pairs(trained):
        start = before[pair.name]
        a = torch.cat([pair.a, start.a])  # (2 r, d_in)
        b = torch.cat([pair.b, -start.b], dim=1)  # (d_out, 2 r)
        doubled.append(pair.with_matrices(a, b))
    return replace_pairs(trained, doubled)
