"""The decision in the terminal: answer, evidence, table, and what to know besides."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from rankwise import sweep
from rankwise.decide import select
from rankwise.decide.decision import TestScore
from rankwise.decide.summary import decision_sentences
from rankwise.report.decision_table import print_decision


@pytest.mark.parametrize("unit", [1, 100])  # others' accuracies may be in percent
def test_the_table_and_the_sentences_hold_only_possible_values(unit: int) -> None:
    odd = [(rank, seed, (rank + seed) % 2) for rank in (1, 2) for seed in (0, 1)]
    rows = [
        {"rank": r, "seed": s, "loss": 0.01 + 0.02 * n, "score": (0.97 + 0.02 * n) * unit}
        for r, s, n in odd
    ]
    decision = select(pd.DataFrame(rows))
    row = decision.table[0]
    assert row.loss_ci is not None and row.score_ci is not None
    assert row.loss_ci[0] < 0 < unit < row.score_ci[1]
    out = io.StringIO()
    print_decision(decision, Console(file=out, width=140))
    table = out.getvalue().split("└")[0]
    for text in (f"[0.000, {row.loss_ci[1]:.3f}]", "100.0]" if unit == 1 else "100.000]"):
        assert text in table
    assert not re.search(r"\[-|10[1-9]\.|1[1-9]\d\.", table)

    test = TestScore(
        trial="r1", examples=50, loss=0.01, loss_ci=(-0.01, 0.03), score=0.98, score_ci=(0.94, 1.02)
    )
    (line,) = [
        line
        for line in decision_sentences(replace(decision, test=test), "accuracy")
        if "test examples" in line
    ]
    assert "accuracy 98.0 % [94.0, 100.0] and loss 0.0100 [0.000, 0.030]" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_has_a_line_for_each_rank(tiny_model: Path, swept: Path, terminal: bool) -> None:
    settings = {"ranks": (2, 4, 8), "learning_rate": (5e-3, 1e-2), "margin": 0.5}
    decision = sweep(
        model=str(tiny_model), data=swept.parent / "reviews.csv", out=swept, **settings
    ).decision
    out = io.StringIO()
    print_decision(
        decision, Console(file=out, width=120, force_terminal=terminal, color_system=None)
    )
    lines = out.getvalue().splitlines()
    for row in decision.table:
        (line,) = [
            line for line in lines if line.startswith(("│", "|")) and f" {row.rank} " in line[:8]
        ]
        assert f"{row.trainable_params:,}" in line
        assert f" {row.loss_mean:.4f} " in line
        assert f" {100 * row.score_mean:.1f} " in line
    assert decision.answer[:60] in out.getvalue()
    assert (
        f"On {decision.test.examples} test examples that played no part in the decision"
        in " ".join(out.getvalue().split())
    )


def test_the_answer_and_its_evidence_come_before_the_table() -> None:
    rows = [
        {"rank": rank, "seed": seed, "example_id": example, "loss": 0.5 + 0.01 * example}
        for rank in (4, 8)
        for seed in (0, 1)
        for example in range(20)
    ]
    decision = select(pd.DataFrame(rows))
    out = io.StringIO()
    print_decision(decision, Console(file=out, width=400))
    before, table = out.getvalue().split("Which rank to train at")
    assert [line.rstrip() for line in before.splitlines()] == [
        line for line in (decision.answer, decision.evidence) if line
    ]
    for caveat in decision.caveats:
        assert f"Note: {caveat}" in " ".join(table.split())
