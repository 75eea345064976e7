from typing import Any

import torch

from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.segments import LoraSettings, Segments


def test_rows_add_up_to_bounds_and_trials_without_an_adapter_are_left_out() -> None:
    empty = torch.empty(0)
    factors: Any = {"layer": LoraFactors(empty, empty, empty, empty, 1.0)}
    segments = Segments(LoraSettings())
    segments.assign([factors, factors], [3, 4])
    assert (len(segments.adapters), list(segments.bounds)) == (2, [0, 3, 7])
    segments.assign([{}], [5])
    assert (len(segments.adapters), list(segments.bounds)) == (0, [0, 5])


def test_a_snapshot_keeps_the_pass_and_no_waiting_outputs() -> None:
    segments = Segments(LoraSettings())
    segments.assign([], [5])
    segments.sibling_outputs["key"] = (torch.zeros(1), torch.zeros(1))
    kept = segments.snapshot()
    segments.assign([], [2])
    assert kept["bounds"] == [0, 5]
    assert kept["sibling_outputs"] == {}
    assert list(segments.sibling_outputs) == ["key"]
