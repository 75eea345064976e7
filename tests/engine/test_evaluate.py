from pathlib import Path

import numpy as np
import pytest
import torch

from rankwise.engine.evaluate import BATCH_TOKENS, CPU_BATCH_TOKENS, evaluate, length_batches
from rankwise.models.base_model import load_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task


def test_scores_match_those_of_each_text_alone(tiny_model: Path, reviews: Path) -> None:
    task = load_task(SweepConfig(data=reviews))
    base = load_base(str(tiny_model), task.objective, ["all-linear"], [4])
    held_out, _ = encode(task.held_out, base.tokenizer, 64)
    table = evaluate(base.model, base.tokenizer, held_out, base.objective)
    assert list(table["example_id"]) == list(held_out.ids)
    with torch.no_grad():
        for row, (tokens, label) in enumerate(
            zip(held_out.input_ids, held_out.labels, strict=True)
        ):
            logits = base.model(input_ids=torch.tensor([tokens])).logits[0].double()
            np.testing.assert_allclose(
                table["loss"][row], -torch.log_softmax(logits, 0)[label].item(), rtol=1e-5
            )
            assert table["score"][row] == float(logits.argmax() == label)


@pytest.mark.parametrize(
    ("device", "copies", "most", "tokens"),
    [
        ("cpu", 1, None, CPU_BATCH_TOKENS),
        ("cuda", 1, None, BATCH_TOKENS),
        ("cuda", 4, None, BATCH_TOKENS // 4),
        ("cuda", 4, 4000, 1000),
        ("cuda", 1, 10, 0),  # shorter than a row
    ],
)
def test_batches_hold_as_many_tokens_as_the_device_and_the_caller_allow(
    device: str, copies: int, most: int | None, tokens: int
) -> None:
    lengths = np.random.default_rng(0).integers(20, 100, 2000).tolist()
    examples = Encoded(tuple(range(2000)), [[1] * length for length in lengths], (0,) * 2000)
    batches = length_batches(examples, torch.device(device), copies, most)
    assert sorted(row for batch in batches for row in batch) == list(range(2000))
    padded = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    assert all(size <= max(tokens, 100) for size in padded)
    assert len(batches) == 2000 if tokens == 0 else max(padded) > tokens - 100
    ordered = [lengths[row] for batch in batches for row in batch]
    assert ordered == sorted(lengths)
