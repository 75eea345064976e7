"""Repeated blocks: a deep model shortened to the few blocks that stand for the rest.

The blocks of a transformer repeat with a period: 1 in most models, 2 where attention alternates
between a window and all tokens. Every period takes the same parameters and memory. So planning
keeps the first period, one in the middle and the last, and multiplies the middle one.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from rankwise.planning.meta_model import MetaModel

MIN_STACK = 4
"""Repetitions below which a stack is kept whole."""
MAX_PERIOD = 8
LISTS_BY_BLOCK = ("layer_types", "mlp_layer_types", "no_rope_layers", "sliding_window_pattern")
"""Lists of a config with an entry for each block."""


@dataclass(frozen=True)
class Stack:
    """A stack of repeated blocks after shortening.

    Attributes:
        name: name of its ``ModuleList`` in the model, for example ``model.layers``.
        middle: names of the kept blocks that stand for others, for example ``("1",)``.
        represented: names of all blocks that each of them stands for, itself included.
    """

    name: str
    middle: tuple[str, ...]
    represented: tuple[tuple[str, ...], ...]

    @property
    def repeats(self) -> int:
        """How often the middle period occurs in the whole model."""
        return len(self.represented[0])


@dataclass
class Skeleton:
    """A shortened model without weights and adapters.

    Attributes:
        meta: the shortened model.
        stacks: its shortened stacks.
    """

    meta: MetaModel
    stacks: list[Stack]

    def copy(self) -> nn.Module:
        """Return a copy of the shortened model."""
        return deepcopy(self.meta.model)

    def repeats(self, name: str) -> int:
        """Return how many layers or parameters of the whole model a name stands for."""
        return len(self.names(name))

    def names(self, name: str) -> list[str]:
        """Return the names, in the whole model, that a name of the skeleton stands for.

        ``name`` may have anything in front (PEFT's ``base_model.model.``) and behind.
        """
        for stack in self.stacks:
            for kept, represented in zip(stack.middle, stack.represented, strict=True):
                front, block, behind = f".{name}.".partition(f".{stack.name}.{kept}.")
                if block:
                    names = (f"{front}.{stack.name}.{key}.{behind}" for key in represented)
                    return [full_name.strip(".") for full_name in names]
        return [name]


class _ListWithGaps(nn.ModuleList):
    """A module list in which the kept blocks have the names that they have in the whole model."""

    def __init__(self, blocks: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)

    def __getitem__(self, index: Any) -> Any:
        blocks = list(self.children())
        return blocks[index] if isinstance(index, int) else nn.ModuleList(blocks[index])


def shorten_stacks(
    model: nn.Module, tell_apart: Callable[[str], object] = lambda name: None
) -> list[Stack]:
    """Shorten every stack of repeated blocks, in place, and return the stacks.

    Args:
        model: a model without adapters; a stack whose blocks share parameters stays whole.
        tell_apart: maps the name of a layer to a value, such as the pattern that matches it; blocks
            with different values are not the same.
    """
    stacks: list[Stack] = []
    done: list[str] = []  # lists whose blocks are not looked into
    for name, module in list(model.named_modules()):
        is_inside = any(name.startswith(f"{other}.") for other in done)
        if type(module) is nn.ModuleList and not is_inside:
            if _share_parameters(module):
                done.append(name)
                continue
            stack = _shorten(model, name, tell_apart)
            if stack is not None:
                stacks.append(stack)
                done.append(name)
    return stacks


def _shorten(model: nn.Module, name: str, tell_apart: Callable[[str], object]) -> Stack | None:
    blocks = dict(model.get_submodule(name).named_children())
    signatures = [_signature(f"{name}.{key}", block, tell_apart) for key, block in blocks.items()]
    repetition = _find_repetition(signatures)
    if repetition is None:
        return None
    start, period, times = repetition
    keys = list(blocks)
    middle = tuple(keys[start + period : start + 2 * period])
    represented = tuple(
        tuple(keys[start + step * period + offset] for step in range(1, times - 1))
        for offset in range(period)
    )
    left_out = {key for group in represented for key in group} - set(middle)
    kept = [index for index, key in enumerate(keys) if key not in left_out]
    parent, _, leaf = name.rpartition(".")
    shortened = _ListWithGaps({keys[index]: blocks[keys[index]] for index in kept})
    setattr(model.get_submodule(parent), leaf, shortened)
    _shorten_configs(model, len(blocks), kept)
    return Stack(name, middle, represented)


def _share_parameters(blocks: Iterable[nn.Module]) -> bool:
    """Return whether a parameter belongs to several blocks, as in Zamba2's shared transformer.

    Such blocks look their number up in tables of the whole depth, and one cannot stand for others:
    their shared weights, and the gradients of those, are there only once.
    """
    seen: set[int] = set()
    for block in blocks:
        own = {id(parameter) for parameter in block.parameters()}
        if own & seen:
            return True
        seen |= own
    return False


def _shorten_configs(model: nn.Module, depth: int, kept: list[int]) -> None:
    """Shorten the configs' lists, which forward passes index by position."""
    configs = {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }
    for config in configs.values():
        for key in LISTS_BY_BLOCK:
            values = vars(config).get(key)
            if isinstance(values, list) and len(values) == depth:
                setattr(config, key, [values[index] for index in kept])


def _find_repetition(signatures: Sequence[Any]) -> tuple[int, int, int] | None:
    """Return (start, period, times) of the repetition that leaves the fewest blocks, if any."""
    fewest = depth = len(signatures)
    best = None
    for period in range(1, min(MAX_PERIOD, depth // MIN_STACK) + 1):
        start = 0
        while start < depth:
            # Continue while each block equals the one a period earlier.
            end = start + period
            while end < depth and signatures[end] == signatures[end - period]:
                end += 1
            times = (end - start) // period
            left = depth - (times - 3) * period
            if times >= MIN_STACK and left < fewest:
                fewest, best = left, (start, period, times)
            start = max(start + 1, end - period + 1)
    return best


def _signature(name: str, block: nn.Module, tell_apart: Callable[[str], object]) -> list[Any]:
    """Describe a block by all that shapes its memory: classes, settings, shapes, ``tell_apart``."""
    parts = []
    for key, module in block.named_modules():
        settings = [
            (attribute, value)
            for attribute, value in vars(module).items()
            if isinstance(value, bool | int | float | str)
            and "layer_id" not in attribute
            and not attribute.startswith("_")
        ]
        shapes = [
            (leaf, tuple(parameter.shape), str(parameter.dtype))
            for leaf, parameter in module.named_parameters(recurse=False)
        ]
        treatment = tell_apart(f"{name}.{key}" if key else name)
        parts.append((key, type(module), sorted(settings), shapes, treatment))
    return parts
