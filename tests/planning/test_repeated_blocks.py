import pytest
from torch import nn

from rankwise.planning.repeated_blocks import shorten_stacks


class Model(nn.Module):
    """Blocks of the given widths, in a list at ``body.layers``."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(nn.Linear(width, 4) for width in widths)


@pytest.mark.parametrize(
    ("widths", "kept", "middle", "repeats"),
    [
        ([8] * 10, ["0", "1", "9"], ("1",), 8),
        ([8, 6] * 5, ["0", "1", "2", "3", "8", "9"], ("2", "3"), 3),
        ([2] + [8] * 8, ["0", "1", "2", "8"], ("2",), 6),  # the first is dense, as in DeepSeek
        ([8] * 8 + [2], ["0", "1", "7", "8"], ("1",), 6),
        ([8, 8, 6] * 4, ["0", "1", "2", "3", "4", "5", "9", "10", "11"], ("3", "4", "5"), 2),
    ],
)
def test_middle_period_stands_for_the_others(
    widths: list[int], kept: list[str], middle: tuple[str, ...], repeats: int
) -> None:
    model = Model(widths)
    (stack,) = shorten_stacks(model)
    layers = model.body.layers
    assert isinstance(layers, nn.ModuleList)
    assert [name for name, _ in layers.named_children()] == kept
    assert (stack.name, stack.middle, stack.repeats) == ("body.layers", middle, repeats)
    # Every block is kept, or one of the same width stands for it.
    stood_for = {
        other: name
        for name, group in zip(middle, stack.represented, strict=True)
        for other in group
    }
    assert set(kept) | set(stood_for) == {str(index) for index in range(len(widths))}
    assert all(widths[int(name)] == widths[int(other)] for other, name in stood_for.items())
    # Forward passes see a list without gaps.
    assert [block.in_features for block in layers] == [widths[int(name)] for name in kept]
    assert layers[2] is list(layers)[2] and len(layers[:2]) == 2


@pytest.mark.parametrize("widths", [[8, 8, 8], [2, 4, 6, 8, 10], [8, 6, 8, 6, 8]])
def test_stack_with_few_repetitions_stays_whole(widths: list[int]) -> None:
    model = Model(widths)
    assert shorten_stacks(model) == []
    assert len(list(model.body.layers.children())) == len(widths)


def test_blocks_with_different_treatment_are_kept() -> None:
    model = Model([8] * 12)
    (stack,) = shorten_stacks(model, lambda name: name.rsplit(".", 1)[-1] in ("0", "1", "2", "3"))
    # The longer run of equal blocks is shortened; the first four are all kept.
    assert {"0", "1", "2", "3"} <= {name for name, _ in model.body.layers.named_children()}
    assert stack.middle == ("5",)


def test_stack_whose_blocks_share_parameters_stays_whole() -> None:
    shared = nn.Linear(8, 4)
    model = Model([])
    # Each block holds a list of equal layers too, which the shared layer may index by its depth.
    model.body.layers = nn.ModuleList(
        nn.ModuleDict({"shared": shared, "own": nn.ModuleList(nn.Linear(8, 4) for _ in range(10))})
        for _ in range(10)
    )
    count = len(list(model.modules()))
    assert shorten_stacks(model) == []
    assert len(list(model.modules())) == count
