from pathlib import Path

import numpy as np
import torch

from rankwise.engine.evaluate import evaluate
from rankwise.models.base_model import load_base
from rankwise.sweeps.config import SweepConfig
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
