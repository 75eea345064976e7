"""The end of a sweep: the result's files, and the scores behind the margin of the score."""

import json
from pathlib import Path

import pandas as pd

from rankwise import select
from rankwise.decide.evidence import read_rank_results
from rankwise.sweeps.finish import SweepResult, _scores, as_json
from tests.decide.examples import make_evidence


def test_an_undetermined_sweep_has_a_report_but_no_adapter_to_hand_over() -> None:
    evidence = make_evidence([0.52, 0.51, 0.50, 0.49], seeds=2, examples=100, seed_noise=0.01)
    decision = select(evidence, margin=0.01)
    result = SweepResult(decision, evidence, Path("out"), "accuracy")
    assert (result.best, result.export) == (None, None)
    content = json.loads(as_json(result))
    assert content["report"] == str(Path("out") / "report.html")
    assert content["verdict"] == "undetermined"
    assert content["best"] is None


def test_scores_at_rejected_rates_do_not_affect_the_margin_of_the_score() -> None:
    rows = [
        {
            "rank": rank,
            "learning_rate": rate,
            "seed": 0,
            "example_id": example,
            "loss": loss,
            "score": -40.0 * loss,
        }
        for rank in (4, 8)
        for rate, loss in ((1e-3, 0.05), (1e-2, 1e4))
        for example in range(3)
    ]
    assert set(_scores(read_rank_results(pd.DataFrame(rows)))) == {-2.0}
