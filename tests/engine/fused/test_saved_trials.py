"""Trials that were saved between two steps go on as if they had never stopped."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.loop import TrainingLoop
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.optimizer import read_figures, step_all
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.engine.fused.saved_trials import Keeper, made_with, restore, saved_trials
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.trial import FinishedTrial, SavedTrial
from rankwise.errors import RankwiseError
from rankwise.models.base_model import Loading
from tests.engine.parity import CONFIG, STEPS, TRIALS, Recorded, Tiny, assert_same_training
from tests.tiny_models import cores, load_tiny, load_tiny_lm

EACH_STEP = replace(CONFIG, checkpoint_minutes=1e-9)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny("bert", tmp_path_factory.mktemp("bert"))


class InMemory:
    """Checkpoints of every step; the engine is stopped after a number of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.written: list[dict[str, SavedTrial]] = []
        self.stop_after = stop_after

    def write(self, saved: Sequence[SavedTrial]) -> None:
        self.written.append({each.name: each for each in saved})
        if len(self.written) == self.stop_after:
            raise KeyboardInterrupt

    def read(self, name: str, made_with: Mapping[str, Any]) -> SavedTrial | None:
        copies = [each[name] for each in self.written if name in each]
        found = [each for each in copies if each.made_with == made_with]
        return found[-1] if found else None


def assert_identical(one: FinishedTrial, other: FinishedTrial) -> None:
    assert one.steps == other.steps
    assert one.evidence.equals(other.evidence)
    assert one.adapter.keys() == other.adapter.keys()
    assert all(torch.equal(value, other.adapter[key]) for key, value in one.adapter.items())


ALL_SETTINGS = replace(
    EACH_STEP, loraplus_ratio=4.0, weight_decay=0.1, lora_dropout=0.2, lr_scheduler="cosine"
)
IN_8_BITS = replace(EACH_STEP, optimizer="adamw-8bit")


@pytest.mark.parametrize(
    ("config", "threads"),  # one shared pass, or a thread for each trial
    [
        (ALL_SETTINGS, 1),
        (IN_8_BITS, 1),
        (EACH_STEP, 2),
        pytest.param(EACH_STEP, 1, marks=pytest.mark.slow),
        pytest.param(ALL_SETTINGS, 2, marks=pytest.mark.slow),
        pytest.param(IN_8_BITS, 2, marks=pytest.mark.slow),
    ],
    ids=["all settings", "8 bits", "plain-2", "plain", "all settings-2", "8 bits-2"],
)
def test_an_interrupted_pack_ends_the_same_to_the_bit(
    tiny: Tiny, config: TrainingConfig, threads: int
) -> None:
    base, train, held_out = tiny
    stopped = InMemory(stop_after=13)
    with cores(threads):
        whole = list(FusedEngine(base, train, held_out, config, pack_size=2).train(TRIALS[:2]))
        with pytest.raises(KeyboardInterrupt):
            engine = FusedEngine(base, train, held_out, config, pack_size=2, checkpoints=stopped)
            list(engine.train(TRIALS[:2]))
        stopped.stop_after = None
        steps = [
            saved.progress["started"]
            for trial in TRIALS[:2]
            if (saved := stopped.read(trial.name, made_with(config)))
        ]
        assert steps and all(0 < step < STEPS for step in steps)
        progress = Recorded()
        again = FusedEngine(
            base, train, held_out, config, progress, pack_size=2, checkpoints=stopped
        )
        resumed = list(again.train(TRIALS[:2]))
    for one, other in zip(resumed, whole, strict=True):
        assert_identical(one, other)
    assert sum(progress.shares) == pytest.approx(2.0)
    assert [note for note in progress.notes if "goes on after step" in note]


def test_a_diverged_trial_stays_diverged(tiny: Tiny) -> None:
    base, train, held_out = tiny
    wild = replace(TRIALS[0], learning_rate=1e30)
    pack = [wild, TRIALS[1]]
    stopped = InMemory(stop_after=16)
    with cores(1):
        whole = list(FusedEngine(base, train, held_out, EACH_STEP, pack_size=2).train(pack))
        with pytest.raises(KeyboardInterrupt):
            engine = FusedEngine(base, train, held_out, EACH_STEP, pack_size=2, checkpoints=stopped)
            list(engine.train(pack))
        stopped.stop_after = None
        engine = FusedEngine(base, train, held_out, EACH_STEP, pack_size=2, checkpoints=stopped)
        resumed = list(engine.train(pack))
    assert [each.diverged for each in resumed] == [True, False]
    assert str(resumed[0].steps) == str(whole[0].steps)  # NaN is not equal to itself
    assert_identical(resumed[1], whole[1])


def test_saving_does_not_change_a_trial_and_copies_it(tiny: Tiny) -> None:
    base, train, _ = tiny
    loop = TrainingLoop(base, train, Limits(1, None))
    state, other = (
        TrainingState(TRIALS[0], base, saved_modules(base), CONFIG, train) for _ in range(2)
    )
    with packed_model(base) as model:

        def step(state: TrainingState) -> None:
            step_all([state], loop.forward_backward(model, [state], [state.batch(state.started)]))

        for _ in range(3):
            step(state)
        (saved,) = saved_trials([state], Limits(1, None))
        before = state.flat.clone()
        step(state)
        restore(other, saved)
        assert torch.equal(other.flat, before)  # not that of the step after
        step(other)
    read_figures([state, other])
    assert torch.equal(other.flat, state.flat)
    assert other.steps == state.steps


def test_training_goes_on_where_nothing_can_be_written(tiny: Tiny, tmp_path: Path) -> None:
    class Full(InMemory):
        def write(self, saved: Sequence[SavedTrial]) -> None:
            raise RankwiseError("cannot write 'x': No space left on device")

    base, train, held_out = tiny
    progress = Recorded()
    engine = FusedEngine(base, train, held_out, EACH_STEP, progress, checkpoints=Full())
    (finished,) = engine.train(TRIALS[:1])
    assert len(finished.steps) == STEPS
    assert len(progress.notes) == 1
    assert "No space left" in progress.notes[0]


def test_nothing_is_kept_before_the_interval_is_over(tiny: Tiny) -> None:
    base, train, held_out = tiny
    kept = InMemory()
    engine = FusedEngine(
        base, train, held_out, replace(CONFIG, checkpoint_minutes=60.0), checkpoints=kept
    )
    list(engine.train(TRIALS[:1]))
    assert kept.written == []


@pytest.mark.parametrize("written_last", ["in memory", "checkpoint"])
def test_the_newest_copy_of_a_trial_counts(tiny: Tiny, written_last: str) -> None:
    """A pack that was halved leaves copies in memory, and its halves are written later on."""
    base, train, _ = tiny
    kept, notes = InMemory(), []
    keeper = Keeper(kept, 1e-9, notes.append, Limits(1, None))
    state = TrainingState(TRIALS[0], base, saved_modules(base), CONFIG, train)
    keeper.begin([state])
    keep = [keeper.set_aside, keeper.after_step]
    for save in keep if written_last == "checkpoint" else reversed(keep):
        state.add_unread(torch.ones(3))
        save([state])
    newest = keeper.read(TRIALS[0].name, CONFIG)
    assert newest is not None
    assert newest.progress["started"] == 2
    assert len(notes) == (written_last == "checkpoint")


@pytest.mark.parametrize(
    "changed", [{"attention": "blocks"}, {"micro_batch_tokens": 64}], ids=["attention", "passes"]
)
def test_a_trial_kept_with_other_settings_starts_again(tiny: Tiny, changed: dict[str, Any]) -> None:
    base, train, held_out = tiny
    stopped = InMemory(stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        list(FusedEngine(base, train, held_out, EACH_STEP, checkpoints=stopped).train(TRIALS[:1]))
    stopped.stop_after = None
    progress, config = Recorded(), replace(EACH_STEP, **changed)
    engine = FusedEngine(base, train, held_out, config, progress, checkpoints=stopped)
    (resumed,) = engine.train(TRIALS[:1])
    (whole,) = FusedEngine(base, train, held_out, config).train(TRIALS[:1])
    assert_identical(resumed, whole)
    assert not progress.notes


def test_a_trial_goes_on_with_the_micro_batches_that_memory_allowed(tiny: Tiny) -> None:
    base, train, held_out = tiny
    whole = FusedEngine(base, train, held_out, EACH_STEP)
    stopped = InMemory(stop_after=20)
    interrupted = FusedEngine(base, train, held_out, EACH_STEP, checkpoints=stopped)
    for engine in (whole, interrupted):
        engine.limits.micro_batch_tokens = 24  # as if memory had run out
    with pytest.raises(KeyboardInterrupt):
        list(interrupted.train(TRIALS[:1]))
    stopped.stop_after = None
    again = FusedEngine(base, train, held_out, EACH_STEP, checkpoints=stopped)
    (resumed,) = again.train(TRIALS[:1])
    assert_identical(resumed, next(iter(whole.train(TRIALS[:1]))))
    assert again.limits.micro_batch_tokens == 24


@pytest.mark.gpu
def test_an_interrupted_pack_on_a_gpu_ends_the_same(tmp_path: Path) -> None:
    """Figures of up to 20 steps are still on the device when a checkpoint is written."""
    base, train, held_out = load_tiny_lm("llama", tmp_path, loading=Loading("cuda", "bf16"))
    whole = list(FusedEngine(base, train, held_out, EACH_STEP, pack_size=2).train(TRIALS[:2]))
    stopped = InMemory(stop_after=13)
    for _ in range(2):
        engine = FusedEngine(base, train, held_out, EACH_STEP, pack_size=2, checkpoints=stopped)
        with suppress(KeyboardInterrupt):
            resumed = list(engine.train(TRIALS[:2]))
    for one, other in zip(resumed, whole, strict=True):
        assert_same_training(one, other)
