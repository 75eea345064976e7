"""Repeated blocks: a deep model cut down to the few blocks that tell everything about the rest.

A transformer is stacks of blocks that repeat with a period (1 in most models, 2 where attention alternates between
a window and the whole). What one period takes, in parameters as in a training step, every period takes. So counting
and tracing look at the first period, one in the middle, and the last, and multiply the one in the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

MIN_STACK = 4
MAX_PERIOD = 8


@dataclass(frozen=True)
class Stack:
    """A stack after cutting.

    Attributes:
        name: of its ``ModuleList`` in the model, for example ``model.layers``.
        middle: names of the kept blocks that stand for others, for example ``("1",)``.
        represented: for each of them, the names of all blocks that it stands for, itself among them.
    """

    name: str
    middle: tuple[str, ...]
    represented: tuple[tuple[str, ...], ...]

    @property
    def repeats(self) -> int:
        """How often the middle period occurs in the whole model."""
        return len(self.represented[0])


class _SparseList(nn.ModuleList):
    """A module list whose names have gaps: blocks keep the names that they have in the whole model."""

    def __init__(self, blocks: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return list(self._modules.values())[index]
        return nn.ModuleList(list(self._modules.values())[index])


def cut_stacks(
    model: nn.Module, is_like: Callable[[str], object] = lambda name: None
) -> list[Stack]:
    """Cut every stack of repeated blocks, in place, and tell what was cut.

    Args:
        model: before adapters are put on.
        is_like: anything that sets layers apart by their name, for example which of them a pattern matches; blocks
            for which it differs are not taken for the same.
    """
    stacks: list[Stack] = []
    for name, module in list(model.named_modules()):
        if type(module) is not nn.ModuleList or any(
            name.startswith(f"{stack.name}.") for stack in stacks
        ):
            continue
        blocks = dict(module.named_children())
        found = _periods(
            [_signature(f"{name}.{key}", block, is_like) for key, block in blocks.items()]
        )
        if found is None:
            continue
        start, period, times = found
        keys = list(blocks)
        middle = tuple(keys[start + period + i] for i in range(period))
        represented = tuple(
            tuple(keys[start + step * period + i] for step in range(1, times - 1))
            for i in range(period)
        )
        gone = {key for keys_of_one in represented for key in keys_of_one} - set(middle)
        kept = {key: block for key, block in blocks.items() if key not in gone}
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _SparseList(kept))
        _cut_config(model, len(blocks), [index for index, key in enumerate(keys) if key in kept])
        stacks.append(Stack(name, middle, represented))
    return stacks


def _cut_config(model: nn.Module, depth: int, kept: list[int]) -> None:
    """Cut the config's lists with an entry a block, which forward passes look up by position."""
    for config in {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }.values():
        for key in ("layer_types", "mlp_layer_types", "no_rope_layers", "sliding_window_pattern"):
            value = vars(config).get(key)
            if isinstance(value, list) and len(value) == depth:
                setattr(config, key, [value[index] for index in kept])


def _periods(signatures: list[Any]) -> tuple[int, int, int] | None:
    """Return (start, period, times) of the repetition that leaves the fewest blocks, or None for too few blocks."""
    depth = len(signatures)
    best: tuple[int, int, int, int] | None = None
    for period in range(1, min(MAX_PERIOD, depth // MIN_STACK) + 1):
        # Lengths of runs in which each block equals the one a period earlier.
        start = 0
        while start < depth:
            end = start + period
            while end < depth and signatures[end] == signatures[end - period]:
                end += 1
            times = (end - start) // period
            if times >= MIN_STACK:
                left = depth - (times - 3) * period
                if best is None or left < best[0]:
                    best = (left, start, period, times)
            start = max(start + 1, end - period + 1)
    return None if best is None else best[1:]


def _signature(name: str, block: nn.Module, is_like: Callable[[str], object]) -> tuple[Any, ...]:
    """Describe a block by all that shapes its memory: classes, settings, shapes, and what ``is_like`` says."""
    parts: list[Any] = []
    for key, module in block.named_modules():
        settings = tuple(
            sorted(
                (attribute, value)
                for attribute, value in vars(module).items()
                if isinstance(value, bool | int | float | str)
                and "layer_id" not in attribute
                and attribute[0] != "_"
            )
        )
        shapes = tuple(
            (leaf, tuple(p.shape), str(p.dtype))
            for leaf, p in module.named_parameters(recurse=False)
        )
        parts.append(
            (key, type(module), settings, shapes, is_like(f"{name}.{key}" if key else name))
        )
    return tuple(parts)
