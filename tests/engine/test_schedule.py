import math

import pytest
import transformers

from rankwise.engine.config import SchedulerName, TrainingConfig
from rankwise.engine.schedule import rate_factors, steps_per_epoch, total_steps, warmup_steps


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    config = TrainingConfig(epochs=3, batch_size=4)
    assert steps_per_epoch(config, range(9)) == 3
    assert total_steps(config, range(9)) == 9


@pytest.mark.parametrize("steps", [2, 9, 20])
def test_max_steps_replaces_the_epochs(steps: int) -> None:
    assert total_steps(TrainingConfig(epochs=3, batch_size=4, max_steps=steps), range(9)) == steps


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_rates_rise_then_take_the_course_of_their_formula(name: SchedulerName) -> None:
    config = TrainingConfig(lr_scheduler=name, warmup_ratio=0.26)
    factor = rate_factors(config, 10)
    rates = [2.0 * factor(step) for step in range(10)]
    assert warmup_steps(config, 10) == 3
    expected = [0.0, 2 / 3, 4 / 3]
    for step in range(7):
        falling = {"linear": 1 - step / 7, "cosine": (1 + math.cos(math.pi * step / 7)) / 2}
        expected.append(2 * falling.get(name, 1.0))
    assert rates == pytest.approx(expected, abs=1e-12)


def test_transformers_reads_the_same_warm_up_from_a_ratio() -> None:
    for steps in (1, 7, 10, 33):
        arguments = transformers.TrainingArguments(warmup_steps=0.1, use_cpu=True)
        ours = warmup_steps(TrainingConfig(warmup_ratio=0.1), steps)
        assert ours == arguments.get_warmup_steps(steps)
