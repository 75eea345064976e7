import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.devices import CPU, DEVICES, find_device
from rankwise.planning.memory.setup import DTYPES, longest_input
from rankwise.planning.meta_model import load_meta_model
from rankwise.planning.params import make_skeleton
from rankwise.planning.planner import (
    LENGTH_STEP,
    MOST_AT_ONCE,
    MOST_ON_CPU,
    Planner,
    find_limits,
    find_savings,
    how_many_fit,
)
from rankwise.sweeps.config import SweepConfig
from tests.tiny_models import request, write_config


def planner(config: PlanConfig) -> Planner:
    meta = load_meta_model(config.model, DTYPES[config.precision], task_type=config.task_type)
    return Planner(make_skeleton(meta, config), config, find_device(config.device))


def test_limits_are_the_most_that_fits(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"), ranks=(4, 8, 16), device="T4")
    one = planner(config)
    room = one.memory(8, batch_size=10).needed + 1000
    limits = find_limits(one, room, config.ranks, highest_rank=64, longest=None)
    assert limits.batch_size is not None and limits.seq_len is not None and limits.rank is not None
    at = limits.at_rank
    assert at == 16
    # Held against steps traced at just those values.
    assert one.memory(at, batch_size=limits.batch_size).needed <= room
    assert one.memory(at, batch_size=limits.batch_size + 1).needed > room
    assert one.memory(at, seq_len=limits.seq_len).needed <= room
    assert one.memory(at, seq_len=limits.seq_len + LENGTH_STEP).needed > room
    assert limits.rank == 64 or one.memory(limits.rank + 1).needed > room
    assert one.memory(limits.rank).needed <= room


@pytest.mark.parametrize(("rank", "checkpointing"), [(1, False), (3, False), (64, True)])
def test_one_rank_has_the_limit_that_several_have(
    tmp_path: Path, rank: int, checkpointing: bool
) -> None:
    settings = {"device": "T4", "gradient_checkpointing": checkpointing}
    config = request(write_config(tmp_path, "llama"), ranks=(rank,), **settings)
    one = planner(config)
    room = one.memory(23).needed
    assert one.memory(24).needed > room  # traced, so that no line through other ranks is trusted
    assert find_limits(one, room, (rank,), highest_rank=64, longest=None).rank == 23


def test_limits_stop_where_the_model_does(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "bert", max_position_embeddings=512))
    one = planner(config)
    longest = longest_input(one.skeleton.meta.model)
    assert longest == 512
    limits = find_limits(one, 1 << 40, (8,), highest_rank=128, longest=longest)
    assert (limits.rank, limits.seq_len) == (128, 512)
    with pytest.raises(RequestError, match="at most 512"):
        one.memory(8, seq_len=513)


def test_nothing_fits_nothing(tmp_path: Path) -> None:
    one = planner(request(write_config(tmp_path, "llama")))
    limits = find_limits(one, 1000, (8,), highest_rank=64, longest=None)
    assert (limits.rank, limits.batch_size, limits.seq_len) == (None, None, None)


def test_savings_are_the_differences_they_say(tmp_path: Path) -> None:
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
        anew = planner(replace(config, **values)).memory(8).needed
        assert savings[change].saves == now - anew
        assert savings[change].fits == (anew <= now // 2)
    # bitsandbytes keeps the states of small tensors in 32 bits: nothing to save here.
    assert now == planner(replace(config, optimizer="adamw-8bit")).memory(8).needed
    assert "--optimizer adamw-8bit" not in savings
    sizes = [saving.saves for saving in savings.values()]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) > 0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("t4", "T4"),
        ("RTX 4090", "RTX-4090"),
        ("a100_80gb", "A100-80GB"),
        ("NVIDIA L4", "L4"),
        ("CPU", "cpu"),
    ],
)
def test_devices_by_any_spelling(text: str, name: str) -> None:
    assert find_device(text).name == name


@pytest.mark.parametrize(
    ("text", "hint"), [("RTX-4091", "RTX-4090"), ("A100", "A100-40GB"), ("MI300", "MI300X")]
)
def test_unknown_device_names_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(RequestError, match=f"did you mean '{hint}'"):
        find_device(text)


def test_catalogue_is_plausible() -> None:
    for device in DEVICES.values():
        assert device.total_bytes is not None
        assert 10 * 2**30 < device.total_bytes < 300 * 2**30
        assert device.workspace_bytes == 2 * (
            32 * 2**20 if device.capability >= 90 else 8320 * 1024
        )


def _training(tmp_path: Path, **settings: Any) -> PlanConfig:
    return request(
        write_config(tmp_path, "bert"), ranks=(4, 64), seq_len=200, task_type="SEQ_CLS", **settings
    )


def test_sweep_that_fits_is_not_refused(tmp_path: Path) -> None:
    def never() -> int:
        raise AssertionError("texts need not be read")

    fit = how_many_fit(_training(tmp_path), never, machine=(CPU, 1 << 40))
    assert fit.at_once == min(MOST_ON_CPU, torch.get_num_threads())


def test_sweep_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    config = _training(tmp_path)
    one = planner(config)
    between = (one.memory(4).needed + one.memory(64).needed) // 2
    with pytest.raises(RequestError, match=r"rank 64 needs .* 4 x 200 tokens.*ranks up to 4 fit"):
        how_many_fit(config, lambda: 1000, machine=(CPU, between))
    with pytest.raises(RequestError, match="no rank fits"):
        how_many_fit(config, lambda: 200, machine=(CPU, 1000))
    # Short texts need less than the length at which they would be cut.
    assert how_many_fit(config, lambda: 8, machine=(CPU, between)).at_once == 1


def test_what_each_rank_needs_is_what_the_plan_says(tmp_path: Path) -> None:
    config = _training(tmp_path)
    fit = how_many_fit(config, lambda: 1000, machine=(CPU, 1 << 40))
    assert fit.needed == {rank: planner(config).memory(rank).needed for rank in config.ranks}
    assert (fit.length, fit.room) == (200, 1 << 40)


def test_trials_at_once_are_what_a_budget_holds(tmp_path: Path) -> None:
    config = _training(tmp_path)
    one = planner(config).memory(64)
    more = one.needed - one.weights  # the second trial and each after it bring all but the base
    machine = (CPU, 1 << 40)
    for trials in (1, 2, 5):
        budget = one.needed + (trials - 1) * more
        assert how_many_fit(config, lambda: 1000, budget, machine).at_once == trials
        assert how_many_fit(config, lambda: 1000, budget + more - 1, machine).at_once == trials
    assert how_many_fit(config, lambda: 1000, 1 << 39, machine).at_once == MOST_AT_ONCE
    assert (
        how_many_fit(config, lambda: 1000, 1 << 39, (CPU, one.needed + more)).at_once == 2
    )  # there is no more than that
    assert (
        how_many_fit(config, lambda: 50, one.needed, machine).at_once > 1
    )  # shorter texts need less
    with pytest.raises(RequestError, match="max_memory is 1000 B; no rank fits"):
        how_many_fit(config, lambda: 1000, 1000, machine)


def test_a_gpu_trains_what_fits_without_being_told(tmp_path: Path) -> None:
    config = replace(_training(tmp_path), device="T4")
    device = find_device("T4")
    one = Planner(planner(config).skeleton, config, device).memory(64)
    more = one.needed - one.weights - one.context
    assert how_many_fit(config, lambda: 1000, machine=(device, one.needed + 2 * more)).at_once == 3


@pytest.mark.parametrize("max_memory", [None, "1GB"])
def test_sweep_says_that_its_memory_is_not_known(
    max_memory: str | None,
    tiny_model: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rankwise.planning import planner as fit
    from rankwise.sweeps.progress import Silent
    from rankwise.sweeps.run import open_run

    class Notes(Silent):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def note(self, text: str) -> None:
            self.texts.append(text)

    def fail(*_: Any, **__: Any) -> None:
        raise RequestError("this model's forward pass depends on values. No more of that")

    config = SweepConfig(
        model=str(tiny_model), data=reviews, ranks=(4,), out=tmp_path / "out", max_memory=max_memory
    )
    for planned in (True, False):
        if not planned:
            monkeypatch.setattr(fit, "Planner", fail)
        with open_run(replace(config, out=tmp_path / str(planned)), notes := Notes()) as run:
            found = [text for text in notes.texts if text.startswith("memory is not checked")]
            assert bool(run.fit.needed) == planned
        assert len(found) == (not planned)
    assert found[0].endswith(
        ", and one trial trains at a time: this model's forward pass depends on values"
    )
    assert ("max_memory is ignored" in found[0]) == (max_memory is not None)


def test_sweep_refuses_before_it_trains(
    tmp_path: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwise.planning import planner as fit
    from rankwise.sweeps.progress import Silent
    from rankwise.sweeps.run import open_run

    directory = Path(write_config(tmp_path / "model", "bert"))
    (directory / "model.safetensors").write_bytes(b"")  # is not read
    words = sorted(
        {
            word
            for line in reviews.read_text().splitlines()
            for word in line.replace(",", " ").split()
        }
    )
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (directory / "vocab.txt").write_text("\n".join(tokens))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    monkeypatch.setattr(fit, "this_machine", lambda: (CPU, 10_000_000))
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"has [\d.]+ MiB free"):
        open_run(SweepConfig(model=str(directory), data=reviews, ranks=(4, 8), out=out), Silent())
    assert not out.exists()
