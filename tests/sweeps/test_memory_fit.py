from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from rankwise import RequestError, SweepConfig
from rankwise.sweeps.memory_fit import fit_to_machine, longest_text, plan_config
from rankwise.tasks.load import load_task


@pytest.fixture
def config(tiny_model: Path, reviews: Path) -> SweepConfig:
    return SweepConfig(model=str(tiny_model), data=reviews, ranks=(2, 8), batch_size=4)


def test_the_plan_has_the_settings_of_the_sweep(config: SweepConfig) -> None:
    request = plan_config(config, load_task(config))
    assert (request.ranks, request.batch_size, request.seq_len) == ((2, 8), 4, 256)
    assert (request.precision, request.task_type, request.num_labels) == ("fp32", "SEQ_CLS", 2)


def test_the_longest_text_is_counted_in_tokens(config: SweepConfig, reviews: Path) -> None:
    task = load_task(config)
    table = pd.read_csv(reviews)
    words = [len(text.split()) for text in table["text"].iloc[list(task.train.ids)]]
    assert longest_text(config, task) == max(words) + 2  # [CLS] and [SEP]


def test_ranks_need_more_memory_the_larger_they_are(config: SweepConfig) -> None:
    fit = fit_to_machine(config, load_task(config))
    assert fit.needed[2] < fit.needed[8]
    assert fit.at_once >= 1


def test_a_rank_that_does_not_fit_is_refused(config: SweepConfig) -> None:
    task = load_task(config)
    ample = fit_to_machine(replace(config, max_memory="1GB"), task)
    # Where memory is short, the longest text counts instead of the longest length allowed.
    tight = fit_to_machine(replace(config, max_memory=ample.needed[8]), task)
    with pytest.raises(RequestError, match=r"rank 8 needs about .* ranks up to 2 fit"):
        fit_to_machine(replace(config, max_memory=tight.needed[8] - 1), task)
