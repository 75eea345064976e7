from dataclasses import replace
from pathlib import Path

import pytest

from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import find_device
from rankwise.planning.memory.setup import longest_input
from rankwise.planning.planner import (
    LENGTH_STEP,
    Planner,
    find_limits,
    find_savings,
)
from rankwise.planning.prepare import prepare
from tests.tiny_models import request, write_config


def planner(config: PlanConfig) -> Planner:
    return Planner(prepare(config).skeleton, config, find_device(config.device))


def test_one_more_than_a_limit_does_not_fit(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"), ranks=(4, 8, 16), device="T4")
    one = planner(config)
    room = one.memory(8, batch_size=10).needed + 1000
    limits = find_limits(one, room, config.ranks, highest_rank=64, longest=None)
    assert limits.batch_size is not None and limits.seq_len is not None and limits.rank is not None
    at = limits.at_rank
    assert at == 16
    # Compare with steps traced at those values.
    assert one.memory(at, batch_size=limits.batch_size).needed <= room
    assert one.memory(at, batch_size=limits.batch_size + 1).needed > room
    assert one.memory(at, seq_len=limits.seq_len).needed <= room
    assert one.memory(at, seq_len=limits.seq_len + LENGTH_STEP).needed > room
    assert limits.rank == 64 or one.memory(limits.rank + 1).needed > room
    assert one.memory(limits.rank).needed <= room


@pytest.mark.parametrize(("rank", "checkpointing"), [(1, False), (3, False), (64, True)])
def test_limit_of_the_rank_is_exact_from_a_single_rank(
    tmp_path: Path, rank: int, checkpointing: bool
) -> None:
    settings = {"device": "T4", "gradient_checkpointing": checkpointing}
    config = request(write_config(tmp_path, "llama"), ranks=(rank,), **settings)
    one = planner(config)
    room = one.memory(23).needed
    assert one.memory(24).needed > room  # traced, not interpolated
    assert find_limits(one, room, (rank,), highest_rank=64, longest=None).rank == 23


def test_limits_stop_at_the_limits_of_the_model(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "bert", max_position_embeddings=512))
    one = planner(config)
    longest = longest_input(one.skeleton.meta.model)
    assert longest == 512
    limits = find_limits(one, 1 << 40, (8,), highest_rank=128, longest=longest)
    assert (limits.rank, limits.seq_len) == (128, 512)
    with pytest.raises(RequestError, match="at most 512"):
        one.memory(8, seq_len=513)


def test_limits_are_none_if_nothing_fits(tmp_path: Path) -> None:
    one = planner(request(write_config(tmp_path, "llama")))
    limits = find_limits(one, 1000, (8,), highest_rank=64, longest=None)
    assert (limits.rank, limits.batch_size, limits.seq_len) == (None, None, None)


def test_savings_equal_differences_between_plans(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"), device="T4", batch_size=8, seq_len=256)
    one = planner(config)
    now = one.memory(8).needed
    savings = {saving.change: saving for saving in find_savings(one, now // 2, 8)}
    for change, values in {
        "--gradient-checkpointing": {"gradient_checkpointing": True},
        "--precision bf16": {"precision": "bf16"},
        "--seq-len 128": {"seq_len": 128},
        "--batch-size 4": {"batch_size": 4},
    }.items():
        needed = planner(replace(config, **values)).memory(8).needed
        assert savings[change].saves == now - needed
        assert savings[change].fits == (needed <= now // 2)
    # bitsandbytes keeps the states of small tensors in 32 bits: nothing to save here.
    assert now == planner(replace(config, optimizer="adamw-8bit")).memory(8).needed
    assert "--optimizer adamw-8bit" not in savings
    sizes = [saving.saves for saving in savings.values()]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) > 0
