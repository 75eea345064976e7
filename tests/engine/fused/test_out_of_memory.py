"""Out of memory: fewer trials at once, then fewer tokens, then one clear line."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from rankwise.engine.fused import loop
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import PackedBatches, PackedModel
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.errors import RankwiseError
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import Loading, load_base
from rankwise.models.out_of_memory import OutOfMemory
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.load import load_task
from tests.engine.parity import CONFIG, STEPS, TRIALS, Recorded, Tiny, assert_same_training
from tests.tiny_models import cores, load_tiny, make_dialogues, save_tiny_lm

CPU = torch.device("cpu")
MESSAGE = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lets passes fail which are larger than a device would hold."""

    def limit(trials: int = 99, tokens: int = 10**9, after: int = 0) -> None:
        plain = PackedModel.loss_sums
        passes = []

        def loss_sums(self: PackedModel, states: Sequence[Any], batches: PackedBatches) -> Any:
            passes.append(1)
            sums = plain(self, states, batches)  # some of a pass may be done before it fails
            size = batches.packing.tokens
            if len(passes) > after and (len(states) > trials or size > tokens):
                raise torch.OutOfMemoryError(MESSAGE)
            return sums

        monkeypatch.setattr(PackedModel, "loss_sums", loss_sums)

    return limit


def test_the_pack_is_halved_and_goes_on(tiny: Tiny, small_device: Callable[..., None]) -> None:
    base, train, held_out = tiny
    trials = [*TRIALS, replace(TRIALS[0], seed=7)]
    with cores(1):  # so that all four are in one pass, if it has few tokens
        expected = list(FusedEngine(base, train, held_out, CONFIG).train(trials))
        small_device(trials=2, after=8)
        progress = Recorded()
        engine = FusedEngine(base, train, held_out, CONFIG, progress, pack_size=4)
        finished = list(engine.train(trials))
    assert [each.trial for each in finished] == trials
    assert [each.pack_size for each in finished] == [2, 2, 2, 2]
    for one, other in zip(finished, expected, strict=True):
        assert len(one.steps) == STEPS
        assert_same_training(one, other)
    assert progress.notes == [
        "out of memory with 4 trials at once; they go on 2 at a time, and so do later ones"
    ]
    assert sum(progress.shares) == pytest.approx(4.0)
    assert engine.pack_size == 2  # for the rest of the sweep


def test_steps_before_are_not_run_again(
    tiny: Tiny, small_device: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, train, held_out = tiny
    taken = []
    plain = loop.step_all

    def step_all(states: Sequence[Any], losses: torch.Tensor) -> None:
        taken.extend((state.trial.name, state.started) for state in states)
        plain(states, losses)

    monkeypatch.setattr(loop, "step_all", step_all)
    small_device(trials=1, after=12)
    progress = Recorded()
    with cores(1):
        list(FusedEngine(base, train, held_out, CONFIG, progress, pack_size=2).train(TRIALS[:2]))
    assert progress.notes
    assert len(taken) == len(set(taken)) == 2 * STEPS


def test_then_micro_batches_are_halved(tiny: Tiny, small_device: Callable[..., None]) -> None:
    base, train, held_out = tiny
    (expected,) = FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:1])
    longest = max(train.lengths)
    small_device(tokens=2 * longest, after=5)
    progress = Recorded()
    engine = FusedEngine(base, train, held_out, CONFIG, progress)
    (finished,) = engine.train(TRIALS[:1])
    assert_same_training(finished, expected)
    assert progress.notes
    assert all("micro-batches of at most" in note for note in progress.notes)
    limit = engine.limits.micro_batch_tokens
    assert limit is not None and longest <= limit <= 2 * longest
    before = len(progress.notes)
    list(engine.train(TRIALS[1:2]))
    assert len(progress.notes) == before  # later trials start with what fits


def test_then_one_line_says_what_was_needed(tiny: Tiny, small_device: Callable[..., None]) -> None:
    base, train, held_out = tiny
    engine = FusedEngine(base, train, held_out, CONFIG, pack_size=2)
    results = engine.train(TRIALS)
    with cores(1):
        first = [next(results), next(results)]  # a complete pack is not lost
        small_device(tokens=max(train.lengths) - 1)
        with pytest.raises(RankwiseError) as caught:
            next(results)
    assert [each.trial for each in first] == TRIALS[:2]
    message = str(caught.value)
    assert f"one example of {max(train.lengths)} tokens does not fit" in message
    assert "20.00 MiB more" in message
    for change in ("--max-length", "rank", "--gradient-checkpointing on", "--quantization nf4"):
        assert change in message
    assert caught.value.exit_code == 1
    assert len(message.splitlines()) == 1


def test_adapters_that_do_not_fit_one_pass_are_scored_in_parts(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds the longest example once scores as one that holds all adapters."""
    base, train, held_out = tiny
    engine = FusedEngine(base, train, held_out, CONFIG)
    adapters = [
        Adapter(each.adapter, each.adapter_config)
        for each in FusedEngine(base, train, held_out, CONFIG, pack_size=2).train(TRIALS[:2])
    ]
    whole = engine.score(adapters)
    plain, longest, sizes = PackedModel.measures, max(held_out.lengths), []

    def measures(self: PackedModel, trials: Sequence[Any], batch: Any) -> Any:
        sizes.append(len(trials) * sum(batch.lengths))
        if sizes[-1] > longest:
            raise torch.OutOfMemoryError(MESSAGE)
        return plain(self, trials, batch)

    monkeypatch.setattr(PackedModel, "measures", measures)
    for one, other in zip(engine.score(adapters), whole, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)
    assert sizes[-1] <= longest < sizes[0]


def test_scoring_that_does_not_fit_does_not_train_again(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, train, held_out = tiny
    whole = list(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:2]))
    plain = FusedEngine._evaluate

    def evaluate(self: FusedEngine, model: PackedModel, trials: Sequence[Any], *rest: Any) -> Any:
        if len(trials) > 1:
            raise torch.OutOfMemoryError(MESSAGE)
        return plain(self, model, trials, *rest)

    monkeypatch.setattr(FusedEngine, "_evaluate", evaluate)
    with cores(1):
        engine = FusedEngine(base, train, held_out, CONFIG, pack_size=2)
        finished = list(engine.train(TRIALS[:2]))
    for one, other in zip(finished, whole, strict=True):
        assert one.pack_size == 1
        assert_same_training(one, other)


def test_limits_fall_by_half_to_the_longest_example() -> None:
    limits, error = Limits(5, None), OutOfMemory(MESSAGE, 1000)
    seen = []
    for trials in (5, 3, 2, 1, 1):
        limits.lower(error, trials, longest=300, largest=1200, device=CPU)
        seen.append((limits.pack_size, limits.micro_batch_tokens))
    assert seen == [(3, None), (2, None), (1, None), (1, 500), (1, 300)]
    with pytest.raises(RankwiseError, match="one example of 300 tokens"):
        limits.lower(error, 1, longest=300, largest=1200, device=CPU)


@pytest.mark.gpu
def test_a_gpu_with_little_memory_trains_the_same_in_smaller_packs(tmp_path: Path) -> None:
    """It may take as much as halfway between what one trial and eight take without a limit."""
    data = tmp_path / "dialogues.jsonl"
    pd.DataFrame(make_dialogues(600)).to_json(data, orient="records", lines=True)
    task = load_task(SweepConfig(data=data))
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    model = str(save_tiny_lm("llama", tmp_path, **size))
    loading = Loading("cuda", "fp32")
    base = load_base(model, task.objective, ["all-linear"], [4], loading=loading)
    train, _ = task.encoder(task.train, base.tokenizer, 64)
    train, held_out = train.take(range(400)), train.take(range(40))
    trials = [replace(TRIALS[0], seed=seed) for seed in range(8)]

    def engine(pack_size: int) -> FusedEngine:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return FusedEngine(base, train, held_out, CONFIG, pack_size=pack_size)

    list(engine(1).train(trials[:1]))
    least = torch.cuda.max_memory_reserved()
    expected = list(engine(8).train(trials))
    most = torch.cuda.max_memory_reserved()
    limited = engine(8)
    total = torch.cuda.get_device_properties(base.device).total_memory
    torch.cuda.set_per_process_memory_fraction((least + most) / 2 / total)
    try:
        finished = list(limited.train(trials))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert limited.pack_size < 8
    for one, other in zip(finished, expected, strict=True):
        assert_same_training(one, other)
