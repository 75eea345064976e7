"""The JSON form of a decision."""

import json

from rankwise import select
from tests.decide.examples import make_evidence


def test_the_decision_is_plain_json() -> None:
    content = json.loads(
        json.dumps(select(make_evidence([0.5, 0.5, 0.5, 0.5])).as_dict(), allow_nan=False)
    )
    assert {
        "verdict",
        "rank",
        "metric",
        "margin",
        "confidence",
        "answer",
        "evidence",
        "caveats",
        "next",
        "table",
    } <= set(content)
    assert {
        "rank",
        "seeds",
        "loss_mean",
        "loss_ci",
        "score_mean",
        "score_ci",
        "trainable_params",
        "adapter_bytes",
        "train_seconds",
        "peak_memory_bytes",
        "worst_difference",
        "non_inferior",
        "gain_over_previous",
    } <= set(content["table"][0])
