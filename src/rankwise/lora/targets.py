"""Which layers of a model an adapter goes on, by PEFT's own matching."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankwise.errors import RequestError, nearest, some

if TYPE_CHECKING:
    from torch import nn

ALL_LINEAR = "all-linear"


def find_targets(
    model: "nn.Module", target_modules: Sequence[str], modules_to_save: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return ``{layer name: (d_in, d_out)}`` for every layer that would get an adapter.

    Args:
        model: the base model, without adapters; the ``meta`` device will do.
        target_modules: ``("all-linear",)``, or names as in ``peft.LoraConfig.target_modules``.
        modules_to_save: layers trained in full, which get no adapter.

    Raises:
        RequestError: a name matches no linear layer (the close ones are named).
    """
    from peft import LoraConfig, TaskType
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists

    sizes = linear_sizes(model)
    everything = list(target_modules) == [ALL_LINEAR]
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=ALL_LINEAR if everything else list(target_modules),
        modules_to_save=list(modules_to_save),
    )
    if everything:
        _maybe_include_all_linear_layers(config, model)  # sets target_modules
    found = {name: size for name, size in sizes.items() if check_target_module_exists(config, name)}
    leaves = {name.rsplit(".", 1)[-1] for name in sizes}
    for target in () if everything else target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in found):
            raise RequestError(
                f"target_modules {target!r} matches no linear layer of the model{nearest(target, leaves)}; "
                f"its linear layers end in: {some(sorted(leaves), 12)}"
            )
    if not found:
        raise RequestError("target_modules 'all-linear' matches nothing: the model has no linear layer")
    return found


def linear_sizes(model: "nn.Module") -> dict[str, tuple[int, int]]:
    """Return ``{name: (d_in, d_out)}`` of every ``nn.Linear`` and GPT-2 style ``Conv1D``."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    sizes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            sizes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            sizes[name] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
    return sizes


def check_ranks(ranks: Sequence[int], targets: dict[str, tuple[int, int]]) -> None:
    """Refuse a rank above the smaller side of a target layer: ``B @ A`` cannot have a higher one.

    Raises:
        RequestError: naming the rank, the largest one allowed and the layer that sets it.
    """
    layer, size = min(targets.items(), key=lambda item: min(item[1]))
    for rank in ranks:
        if rank > min(size):
            raise RequestError(
                f"rank {rank} is larger than a target layer allows: at most {min(size)}, "
                f"the smaller side of {layer} ({size[0]} -> {size[1]})"
            )
