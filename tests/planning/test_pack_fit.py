"""Which packs of the fused engine fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import find_device
from rankwise.planning.pack_fit import FusedRequest, PackPlanner, PassLimits
from rankwise.planning.prepare import PreparedRequest, prepare
from rankwise.tasks.losses import CompletionObjective
from tests.tiny_models import request, write_config

LM = CompletionObjective()
WHOLE = PassLimits(None, False)


@pytest.fixture
def skeleton(tmp_path: Path) -> PreparedRequest:
    config: PlanConfig = request(
        write_config(tmp_path, "llama"), batch_size=8, seq_len=256, target_modules=None
    )
    return prepare(config)


def packs(prepared: PreparedRequest, *settings: Any) -> PackPlanner:
    asked = FusedRequest(LM, *settings)
    return PackPlanner(prepared.skeleton, prepared.config, find_device("H100"), asked)


def test_the_fastest_way_that_fits_is_taken(skeleton: PreparedRequest) -> None:
    planner = packs(skeleton)
    every = list(planner.limits())
    assert every[0] == WHOLE
    assert every[-1] == PassLimits(256, True)
    needs = [planner.memory(8, limits).needed for limits in every]
    for place in (0, 1, len(every) - 1):
        room = needs[place]
        expected = next(limits for limits, need in zip(every, needs, strict=True) if need <= room)
        assert planner.fit((4, 8), room, 1).limits == expected


def test_as_many_trials_train_as_there_is_room_for(skeleton: PreparedRequest) -> None:
    planner = packs(skeleton)
    three = planner.memory(8, WHOLE, 3).needed
    assert planner.fit((4, 8), three, 16).at_once == 3
    assert planner.fit((4, 8), three - 1, 16).at_once == 2
    assert planner.fit((4, 8), 1 << 50, 16).at_once == 16


def test_settings_of_the_request_are_kept(skeleton: PreparedRequest) -> None:
    assert list(packs(skeleton, "on", 512).limits()) == [PassLimits(512, True)]
    assert {each.checkpointing for each in packs(skeleton, "off").limits()} == {False}
    both = [PassLimits(64, False), PassLimits(64, True)]
    assert list(packs(skeleton, "auto", 64).limits()) == both


def test_nothing_is_chosen_where_the_plan_may_not(skeleton: PreparedRequest) -> None:
    planner = packs(skeleton, "auto", None, "auto", False)
    assert list(planner.limits()) == [WHOLE]
    assert planner.fit((8,), 1, 2).at_once == 1


def test_the_kernel_of_attention_is_that_of_the_request(skeleton: PreparedRequest) -> None:
    config = replace(skeleton.config, precision="bf16")
    blocks, one_kernel = (
        packs(replace(skeleton, config=config), "off", None, name).memory(8, WHOLE).needed
        for name in ("blocks", "varlen")
    )
    assert blocks > one_kernel


def test_a_trial_needs_more_the_higher_its_rank(skeleton: PreparedRequest) -> None:
    planner = packs(skeleton)
    needed = planner.fit((4, 8, 16), 1 << 50, 1).needed
    assert needed[8] == pytest.approx(planner.memory(8, WHOLE).needed, rel=0.01)
    assert needed[4] < needed[8] < needed[16]
