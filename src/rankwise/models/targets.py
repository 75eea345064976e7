"""The layers of a model that get an adapter, matched as PEFT matches them."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankwise.checks import check_matching_ends
from rankwise.errors import RequestError, nearest, shown, some
from rankwise.models.compat import expand_all_linear, forbidden_targets

if TYPE_CHECKING:
    from torch import nn

ALL_LINEAR = "all-linear"
GROUPS = ("attention", "mlp")
REGEX_SIGNS = frozenset(r"*+?[](){}|\^$")

TargetModules = str | tuple[str, ...]
"""``all-linear``, a group or a regular expression as a text; layer names as a tuple."""


def parse_targets(items: Sequence[str]) -> TargetModules:
    """Return targets as a text if they are ``all-linear``, a group or a regex, else as a tuple.

    Args:
        items: At least one text, none blank.

    Raises:
        RequestError: A group stands among names, or a regular expression is not valid.
    """
    words = (ALL_LINEAR, *GROUPS)
    if len(items) > 1:
        for item in items:
            if item.strip().lower() in words:
                others = "give names of layers as in query,value"
                raise RequestError(f"target_modules: {item!r} stands alone, or {others}")
        return tuple(items)
    (item,) = items
    if item.strip().lower() in words:
        return item.strip().lower()
    if not REGEX_SIGNS & set(item):
        return (item,)
    try:
        re.compile(item)
    except (re.error, OverflowError, RecursionError) as error:
        problem = f"is not a regular expression: {error}"
        raise RequestError(f"target_modules {shown(item)} {problem}") from None
    return item


def find_targets(
    model: "nn.Module", target_modules: str | Sequence[str], modules_to_save: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return ``{layer name: (d_in, d_out)}`` of every layer that gets an adapter.

    Args:
        model: The base model without adapters, on any device (``meta`` too).
        target_modules: As `parse_targets` returns or takes it.
        modules_to_save: Layers trained in full, which get no adapter.

    Raises:
        RequestError: A name or a regular expression matches no linear layer.
    """
    from peft import LoraConfig, TaskType
    from peft.tuners.tuners_utils import check_target_module_exists

    targets = target_modules if isinstance(target_modules, str) else parse_targets(target_modules)
    if isinstance(targets, str) and targets in GROUPS:
        targets = group_pattern(model, targets)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=list(modules_to_save),
    )
    if targets == ALL_LINEAR:
        expand_all_linear(config, model)
        forbidden = without_adapter(model)
        expanded = sorted(config.target_modules or ())
        config.target_modules = [name for name in expanded if name not in forbidden]
    sizes = linear_sizes(model)
    if isinstance(config.target_modules, str):
        check_matching_ends("target_modules", [config.target_modules], list(sizes))
    matched = {name: sizes[name] for name in sizes if check_target_module_exists(config, name)}
    endings = _endings(sizes)
    for target in () if isinstance(targets, str) else targets:
        if not any(name == target or name.endswith(f".{target}") for name in matched):
            hint = nearest(target, (*endings, *GROUPS))
            raise RequestError(
                f"target_modules {target!r} matches no linear layer of the model{hint}; "
                f"its linear layers end in: {some(endings, 12)}"
            )
    if not matched:
        raise RequestError(
            f"target_modules {targets!r} matches no linear layer of the model; they end in: "
            f"{some(endings, 12) or 'none, it has none'}"
        )
    return matched


def group_pattern(model: "nn.Module", group: str) -> str:
    """Return the regular expression, as PEFT matches it, for a group of a model's linear layers.

    Layers inside the numbered blocks of a stack are ``attention`` if it is in their path
    (``self_attn``, ``attention``, ``EncDecAttention``), else ``mlp``.

    Raises:
        RequestError: The model has no such layer.
    """
    from torch import nn

    stacks = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = linear_sizes(model)
    forbidden = without_adapter(model)
    patterns: dict[str, None] = {}
    for name in sizes:
        parts = name.split(".")
        path = _path_in_block(parts, stacks)
        is_attention = any(re.search("att(e?n|ention)", part.lower()) for part in path)
        if path and is_attention == (group == "attention") and name not in forbidden:
            patterns[_at_any_depth(name)] = None
    if not patterns:
        raise RequestError(
            f"target_modules {group!r} matches no linear layer in the blocks of this model; "
            "allowed are all-linear, names or a regex; its linear layers end in: "
            f"{some(_endings(sizes), 12)}"
        )
    return "|".join(patterns)


def without_adapter(model: "nn.Module") -> dict[str, str]:
    """Return the linear layers of a model that cannot have an adapter, each with the reason.

    PEFT refuses those that Mamba's kernels pass by. It takes every layer of a class derived from
    ``nn.Linear``, such as Llama 4's router, but cannot add to an output that is no tensor.
    """
    from torch import nn

    reasons = {
        name: "PEFT refuses it, because Mamba's kernels pass by an adapter"
        for name in forbidden_targets(model, linear_sizes(model))
    }
    returns_tensor: dict[type, bool] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, nn.Linear) and kind.forward is not nn.Linear.forward:
            if kind not in returns_tensor:
                returns_tensor[kind] = _returns_tensor(module)
            if not returns_tensor[kind]:
                reasons[name] = "it returns more than one tensor"
    return reasons


def part_pattern(model: "nn.Module", part: str) -> str:
    """Return the regular expression, as PEFT matches it, for the linear layers of a model's part.

    Like PEFT's ``all-linear`` it leaves out the output layer.

    Args:
        model: A transformers model.
        part: Name of a module in it, such as the language model of a model for images.
    """
    forbidden = without_adapter(model)
    outputs = model.get_output_embeddings()  # type: ignore[operator]
    patterns: dict[str, None] = {}
    for name in linear_sizes(model):
        is_output = model.get_submodule(name) is outputs
        if name.startswith(f"{part}.") and name not in forbidden and not is_output:
            patterns[_at_any_depth(name)] = None
    return "|".join(patterns)


def _returns_tensor(layer: "nn.Module") -> bool:
    """Whether a layer returns one tensor; True if it cannot be called with one row."""
    import torch

    weight = next(layer.parameters())
    if not weight.is_floating_point():
        # bitsandbytes' layers return a tensor; a row of integers would turn their bias to integers.
        return True
    try:
        with torch.no_grad():
            output = layer(
                torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
            )
    except (RuntimeError, TypeError, ValueError, IndexError):
        return True
    return isinstance(output, torch.Tensor)


def _at_any_depth(name: str) -> str:
    """Return the regular expression of a layer's name with any numbers of blocks."""
    parts = [r"\d+" if part.isdigit() else re.escape(part) for part in name.split(".")]
    return r"\.".join(parts)


def _path_in_block(parts: Sequence[str], stacks: set[str]) -> Sequence[str]:
    """Return the part of a layer's path inside the outermost block; empty outside all blocks."""
    for at in range(1, len(parts)):
        if parts[at].isdigit() and ".".join(parts[:at]) in stacks:
            return parts[at + 1 :]
    return ()


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


def _endings(sizes: dict[str, tuple[int, int]]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in sizes})


def check_ranks(ranks: Sequence[int], targets: dict[str, tuple[int, int]]) -> None:
    """Refuse a rank above the smaller side of a target layer, the highest rank of ``B @ A``.

    Raises:
        RequestError: The message names the largest allowed rank and the limiting layer.
    """
    layer, (d_in, d_out) = min(targets.items(), key=lambda item: min(item[1]))
    limit = min(d_in, d_out)
    for rank in ranks:
        if rank > limit:
            raise RequestError(
                f"rank {rank} is larger than a target layer allows: at most {limit}, "
                f"the smaller side of {layer} ({d_in} -> {d_out})"
            )
