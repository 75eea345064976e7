"""Training in bf16 on a GPU, and on the CPU by the same code: the same losses whichever way.

bf16 keeps 8 bits, so that a rounding changes a value by half of EPSILON at most. Two ways that
round in another order differ in each logit by about one rounding, and a loss is a mean of many.
"""

from dataclasses import replace

import pytest
import torch
from benchmarks.on_gpu.lengths import make_examples
from benchmarks.on_gpu.models import Scale, random_base
from benchmarks.on_gpu.ways import make_trial

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.reference import ReferenceEngine
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.models.base_model import BaseModel

EPSILON = torch.finfo(torch.bfloat16).eps
CONFIG = TrainingConfig(batch_size=4, max_steps=5, precision="bf16")
EXAMPLES = make_examples([9, 40, 17, 33, 25, 12, 30, 21] * 4)
TRIALS = [
    replace(make_trial(8, 0), learning_rate=1e-3),
    replace(make_trial(4, 1), learning_rate=1e-3),
    replace(make_trial(2, 2), learning_rate=1e-3),
]


def train(
    base: BaseModel, trials: list[Trial], config: TrainingConfig = CONFIG, pack: int = 1
) -> list[FinishedTrial]:
    return list(
        FusedEngine(base, EXAMPLES, EXAMPLES.take([0, 1]), config, pack_size=pack).train(trials)
    )


def losses(finished: FinishedTrial) -> list[float]:
    return [row["train_loss"] for row in finished.steps]


def assert_same_losses(one: FinishedTrial, other: FinishedTrial) -> None:
    assert len(one.steps) == CONFIG.max_steps
    assert losses(one) == pytest.approx(losses(other), rel=EPSILON)
    assert one.evidence["loss"].tolist() == pytest.approx(
        other.evidence["loss"].tolist(), rel=EPSILON
    )


@pytest.mark.parametrize("size", ["1B", pytest.param("MoE", marks=pytest.mark.slow)])
def test_the_fused_engine_trains_as_the_reference_does(scale: Scale, size: str) -> None:
    base = random_base(scale.sizes[size], scale)
    (expected,) = ReferenceEngine(base, EXAMPLES, EXAMPLES.take([0, 1]), CONFIG).train(TRIALS[:1])
    (finished,) = train(base, TRIALS[:1])
    assert_same_losses(finished, expected)
    norms = [[row["grad_norm"] for row in each.steps] for each in (finished, expected)]
    # A norm sums roundings of a forward and a backward pass, over two blocks.
    assert norms[0] == pytest.approx(norms[1], rel=8 * EPSILON)


def test_a_pack_trains_as_its_trials_do_alone(scale: Scale) -> None:
    base = random_base(scale.sizes["1B"], scale)
    for one, other in zip(train(base, TRIALS, pack=3), train(base, TRIALS), strict=True):
        assert_same_losses(one, other)
        assert one.trainable_params == other.trainable_params


def test_dropout_draws_the_same_in_a_pack_as_alone(scale: Scale) -> None:
    base = random_base(scale.sizes["1B"], scale)
    config = replace(CONFIG, lora_dropout=0.5)
    packed, alone = train(base, TRIALS, config, pack=3), train(base, TRIALS, config)
    for one, other in zip(packed, alone, strict=True):
        assert_same_losses(one, other)
    # Losses alone would hardly tell: B starts at zero. The norms of B's gradients do.
    plain = train(base, TRIALS[:1])[0]
    first = [each.steps[0]["grad_norm"] for each in (packed[0], alone[0], plain)]
    assert first[0] == pytest.approx(first[1], rel=8 * EPSILON)
    assert first[0] != pytest.approx(first[2], rel=8 * EPSILON)


@pytest.mark.parametrize("tokens", [30, pytest.param(64, marks=pytest.mark.slow)])
def test_micro_batches_add_up_to_the_batch(scale: Scale, tokens: int) -> None:
    base = random_base(scale.sizes["1B"], scale)
    (whole,) = train(base, TRIALS[:1])
    (split,) = train(base, TRIALS[:1], replace(CONFIG, micro_batch_tokens=tokens))
    assert_same_losses(split, whole)
    norms = [[row["grad_norm"] for row in each.steps] for each in (split, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=8 * EPSILON)


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_recomputed_blocks_give_the_same_training(scale: Scale, dropout: float) -> None:
    base = random_base(scale.sizes["1B"], scale)
    config = replace(CONFIG, lora_dropout=dropout, gradient_checkpointing="off")
    kept = train(base, TRIALS, config, pack=3)
    recomputed = train(base, TRIALS, replace(config, gradient_checkpointing="on"), pack=3)
    for one, other in zip(recomputed, kept, strict=True):
        assert_same_losses(one, other)
        norms = [[row["grad_norm"] for row in each.steps] for each in (one, other)]
        assert norms[0] == pytest.approx(norms[1], rel=8 * EPSILON)


def test_a_diverged_trial_leaves_the_others_alone(scale: Scale) -> None:
    base = random_base(scale.sizes["1B"], scale)
    wild = replace(TRIALS[1], learning_rate=1e38)
    packed = train(base, [TRIALS[0], wild, TRIALS[2]], pack=3)
    (alone,) = train(base, TRIALS[:1])
    assert [each.diverged for each in packed] == [False, True, False]
    assert packed[1].evidence.empty
    # It is frozen at the step that diverged: its figures end there.
    assert len(packed[1].steps) < CONFIG.max_steps
    assert_same_losses(packed[0], alone)


def test_a_4bit_base_trains_as_the_reference_does(scale: Scale) -> None:
    pytest.importorskip("bitsandbytes")
    from benchmarks.on_gpu.memory import quantize

    size = scale.sizes["1B"]
    # bitsandbytes' kernel for CPUs takes whole blocks of 64 weights of a row.
    wide = replace(size, config={**size.config, "hidden_size": 64, "intermediate_size": 128})
    base = random_base(wide, scale)
    quantize(base.model)
    (expected,) = ReferenceEngine(base, EXAMPLES, EXAMPLES.take([0, 1]), CONFIG).train(TRIALS[:1])
    for finished in (train(base, TRIALS[:1])[0], train(base, TRIALS, pack=3)[0]):
        assert_same_losses(finished, expected)
