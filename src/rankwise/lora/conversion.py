"""Adapters that were trained over a changed base, for use on the original one."""

import torch

from rankwise.lora.adapter import Adapter, pairs, with_pairs


def for_original_base(trained: Adapter, initial: Adapter) -> Adapter:
    """Return the plain LoRA adapter that does to the original base what a trained one does to the changed base.

    PiSSA (Meng et al. 2024, section 3) and OLoRA (Büyükakyüz 2024) take ``s * B0 @ A0`` out of the base weight W and
    start the adapter there. After training the layer is ``W - s * B0 @ A0 + s * B @ A``, which is
    ``W + s * [B, -B0] @ [A; A0]``: an adapter of twice the rank on W itself, exact but for rounding. PEFT's
    ``path_initial_model_for_weight_conversion`` does the same.

    Args:
        trained: as it is after training, of rank r.
        initial: as it was before, of rank r, over the same layers.

    Returns:
        An adapter of rank 2 r, with the tensors of modules trained in full as they are.
    """
    before = {pair.name: pair for pair in pairs(initial)}
    return with_pairs(
        trained,
        [
            pair.with_matrices(
                torch.cat([pair.a, before[pair.name].a]),  # (2 r, d_in)
                torch.cat([pair.b, -before[pair.name].b], dim=1),  # (d_out, 2 r)
            )
            for pair in pairs(trained)
        ],
    )
