"""Which layers of a model an adapter goes on, by PEFT's own matching."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankwise.errors import RequestError, nearest, shown, some
from rankwise.models.compat import expand_all_linear

if TYPE_CHECKING:
    from torch import nn

ALL_LINEAR = "all-linear"
GROUPS = ("attention", "mlp")
REGEX_SIGNS = frozenset(r"*+?[](){}|\^$")

TargetModules = str | tuple[str, ...]
"""``all-linear``, a group, or a regular expression as a text; names of layers as a tuple."""


def parse_targets(items: Sequence[str]) -> TargetModules:
    """Tell ``all-linear``, a group and a regular expression, which stand alone, from names.

    Args:
        items: at least one text, none blank.

    Raises:
        RequestError: a group stands among names, or a regular expression is none.
    """
    first = items[0].strip().lower()
    if len(items) == 1 and first in (ALL_LINEAR, *GROUPS):
        return first
    if len(items) == 1 and REGEX_SIGNS & set(items[0]):
        try:
            re.compile(items[0])
        except (re.error, OverflowError, RecursionError) as error:
            raise RequestError(
                f"target_modules {shown(items[0])} is not a regular expression: {error}"
            ) from None
        return items[0]
    for item in items:
        if item.strip().lower() in (ALL_LINEAR, *GROUPS) and len(items) > 1:
            raise RequestError(
                f"target_modules: {item!r} stands alone, or give names of layers as in query,value"
            )
    return tuple(items)


def group_pattern(model: "nn.Module", group: str) -> str:
    """Return the regular expression, as PEFT matches it, for a group of a model's linear layers.

    A group is found by where a layer lies: of the layers inside the numbered blocks of a stack, those with attention
    in their path (``self_attn``, ``attention``, ``EncDecAttention``) are ``attention``, the others ``mlp``.

    Args:
        model: the base model, without adapters; the ``meta`` device will do.
        group: one of `GROUPS`.

    Raises:
        RequestError: the model has no such layer.
    """
    from torch import nn

    stacks = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    patterns: dict[str, None] = {}
    leaves = set()
    for name in linear_sizes(model):
        leaves.add(name.rsplit(".", 1)[-1])
        parts = name.split(".")
        inside = [
            at
            for at in range(1, len(parts))
            if parts[at].isdigit() and ".".join(parts[:at]) in stacks
        ]
        if not inside:
            continue
        is_attention = any(
            re.search("att(e?n|ention)", part.lower()) for part in parts[inside[0] + 1 :]
        )
        if is_attention == (group == "attention"):
            patterns[
                r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in parts)
            ] = None
    if not patterns:
        raise RequestError(
            f"target_modules {group!r} matches no linear layer in this model's blocks; allowed are all-linear, names "
            f"or a regex; its linear layers end in: {some(sorted(leaves), 12)}"
        )
    return "|".join(patterns)


def find_targets(
    model: "nn.Module", target_modules: str | Sequence[str], modules_to_save: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return ``{layer name: (d_in, d_out)}`` for every layer that would get an adapter.

    Args:
        model: the base model, without adapters; the ``meta`` device will do.
        target_modules: as `parse_targets` returns it, or takes it.
        modules_to_save: layers trained in full, which get no adapter.

    Raises:
        RequestError: a name or a regular expression matches no linear layer (the close ones are named).
    """
    from peft import LoraConfig, TaskType
    from peft.tuners.tuners_utils import check_target_module_exists

    sizes = linear_sizes(model)
    wanted = target_modules if isinstance(target_modules, str) else parse_targets(target_modules)
    if wanted in GROUPS:
        wanted = group_pattern(model, str(wanted))
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=wanted if isinstance(wanted, str) else list(wanted),
        modules_to_save=list(modules_to_save),
    )
    if wanted == ALL_LINEAR:
        expand_all_linear(config, model)
    found = {name: size for name, size in sizes.items() if check_target_module_exists(config, name)}
    leaves = {name.rsplit(".", 1)[-1] for name in sizes}
    for target in () if isinstance(wanted, str) else wanted:
        if not any(name == target or name.endswith(f".{target}") for name in found):
            raise RequestError(
                f"target_modules {target!r} matches no linear layer of the model{nearest(target, (*leaves, *GROUPS))}; "
                f"its linear layers end in: {some(sorted(leaves), 12)}"
            )
    if not found:
        raise RequestError(
            f"target_modules {wanted!r} matches no linear layer of the model; they end in: "
            f"{some(sorted(leaves), 12) or 'none, it has none'}"
        )
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
