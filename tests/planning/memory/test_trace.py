"""Records and their peaks, by hand-counted examples; steps of real models are in test_step.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rankwise.errors import RequestError
from rankwise.planning.memory.trace import (
    ACTIVATIONS,
    LOGITS,
    PARTS,
    Record,
    Recorder,
    Section,
    interpolate_records,
    peak_and_end,
)


def section(*changes: int, repeats: int = 1) -> Section:
    table = np.zeros((len(changes), len(PARTS)), dtype=np.int64)
    table[:, ACTIVATIONS] = changes
    return Section(table, repeats)


@pytest.mark.parametrize(
    ("sections", "peak", "end"),
    [
        ([section(5, -5), section(3)], 5, 3),
        ([section(4, -1, repeats=3)], 3 + 3 + 4, 9),  # each run leaves 3: the last is the highest
        ([section(6), section(2, -4, repeats=3)], 8, 0),  # each run frees 2: the first is
        ([], 0, 0),
    ],
)
def test_peak_of_repeated_sections(sections: list[Section], peak: int, end: int) -> None:
    start = np.zeros(len(PARTS), dtype=np.int64)
    highest, last = peak_and_end(start, sections)
    assert (highest.sum(), last.sum()) == (peak, end)
    one_by_one = [replace(part, repeats=1) for part in sections for _ in range(part.repeats)]
    highest, last = peak_and_end(start, one_by_one)
    assert (highest.sum(), last.sum()) == (peak, end)


def test_sections_round_each_allocation_up_to_whole_blocks() -> None:
    record = Record(
        np.array([1, 700]), np.array([ACTIVATIONS, LOGITS]), np.array([0, 1, ~0]), ((0, 1), (1, 4))
    )
    first, second = record.sections(512)
    assert (first.repeats, second.repeats) == (1, 4)
    assert first.changes[:, ACTIVATIONS].tolist() == [512]
    assert second.changes[:, LOGITS].tolist() == [1024, 0]
    assert second.changes[:, ACTIVATIONS].tolist() == [0, -512]


def test_records_are_interpolated_exactly_in_the_second_degree() -> None:
    def record(length: int) -> Record:
        sizes = np.array([7, 3 * length, 5 * length**2 + 2 * length])
        return Record(sizes, np.zeros(3, dtype=int), np.arange(3), ((0, 1),))

    points = [(length, record(length)) for length in (128, 256, 384)]
    between = interpolate_records(points, 4096)
    assert between.sizes.tolist() == record(4096).sizes.tolist()
    assert between.has_events_of(record(1))
    assert not between.has_events_of(replace(record(1), events=np.array([0, 1, ~0])))


def test_recorder_notes_allocations_releases_and_scratch() -> None:
    add = torch.ops.aten.add.Tensor
    recorder = Recorder({add: lambda *args, **kwargs: 100}, classes=10)
    x = torch.zeros(2, 3, device="meta")
    recorder.ignore(x)
    with recorder.tracking():
        y = x + 1
        y.view(6)
        logits = x.new_empty(2, 10)
        del y
        torch.zeros(5)  # not on meta
    assert recorder.sizes == [24, 100, 80]
    assert recorder.parts == [ACTIVATIONS, ACTIVATIONS, LOGITS]
    assert recorder.events == [0, 1, ~1, 2, ~0]
    assert recorder.number(logits) == 2
    assert recorder.number(x) is None


def test_tests_of_values_hold_and_values_themselves_are_refused() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool, device="meta")
    with Recorder({}, None).tracking():
        assert bool(mask.all())
        assert mask.nonzero().shape == (6, 2)
        with pytest.raises(RequestError, match="depends on the values"):
            torch.zeros(1, device="meta").item()
