"""The decision in the terminal: answer, evidence, bars, table, and what to know besides."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from rankwise import sweep
from rankwise.decide import select
from rankwise.decide.decision import Decision, RankRow, TestScore
from rankwise.decide.summary import decision_sentences
from rankwise.report.decision_table import print_decision, recommendation


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


def decided(*confidences: float | None, recommended: int | None, selected: bool) -> Decision:
    """Return a decision on ranks 2, 4, 8, ... with these confidences."""
    ranks = [2 ** (place + 1) for place in range(len(confidences))]
    table = tuple(
        RankRow(
            rank=rank,
            seeds=0 if confidence is None else 2,
            loss_mean=None if confidence is None else 0.5,
            confidence_within_margin=confidence,
            non_inferior=confidence is not None and confidence >= 0.95,
        )
        for rank, confidence in zip(ranks, confidences, strict=True)
    )
    reached = dict(zip(ranks, confidences, strict=True))
    return Decision(
        verdict="selected" if selected else "undetermined",
        rank=recommended if selected else None,
        recommended=recommended,
        confidence_reached=None if recommended is None else reached[recommended],
        metric="loss",
        margin=0.02,
        confidence=0.95,
        answer="An answer.",
        evidence="",
        caveats=(),
        next=(),
        table=table,
    )


def printed(decision: Decision, **console: Any) -> list[str]:
    out = io.StringIO()
    print_decision(decision, Console(file=out, width=120, **console))
    return out.getvalue().splitlines()


def test_bars_show_how_sure_each_rank_is_against_what_was_asked() -> None:
    lines = printed(decided(0.0249, 0.838, 0.1, None, recommended=4, selected=False))
    title = lines.index("How sure that a rank is within 0.02 of the best (| 95 % asked)")
    bars = lines[title + 1 : title + 5]
    assert "".join(bars).isascii()
    assert [bar.split()[0] for bar in bars] == ["2", "4", "8", "16"]
    # A bar of 40 characters stands for 100 %, and the line stands at 95 %.
    assert {bar.index("|") for bar in bars} == {len("16 ") + 38}
    assert [bar.count("#") for bar in bars] == [0, 0, 4, 0]
    assert bars[1].count("=") == 33
    assert [re.split(r"\|\s*", bar)[1] for bar in bars] == [
        "2 %", "83 %  <- use this rank for now", "10 %", "diverged"
    ]  # fmt: skip

    lines = printed(decided(0.5, 0.9777, 0.99, recommended=4, selected=True))
    (bar,) = [line for line in lines if "<-" in line]
    assert bar.split("#  ")[1] == "97.7 %  <- use this rank"
    assert bar.count("#") == 39 and "=" not in bar


@pytest.mark.parametrize("confidences", [(None, None), (0.0, 0.0)])
def test_no_bars_where_nothing_shows_how_sure_a_rank_is(
    confidences: tuple[float | None, ...],
) -> None:
    decision = decided(*confidences, recommended=2, selected=False)
    assert not any("How sure" in line for line in printed(decision))
    assert recommendation(decision) == "2 (provisional: how sure is not known, 95 % asked)"


def test_bars_have_blocks_and_colours_only_in_a_terminal_that_has_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decision = decided(0.5, 0.838, 0.2, recommended=4, selected=False)
    coloured = {"force_terminal": True, "color_system": "standard", "legacy_windows": False}
    text = "\n".join(printed(decision, **coloured))
    assert "█" in text and "▒" in text and "│ 95 % asked" in text
    assert "\x1b[33m▒" in text  # amber, as in the report
    for plain in ({**coloured, "no_color": True}, {"force_terminal": True, "color_system": None}):
        lines = printed(decision, **plain)
        start = next(row for row, line in enumerate(lines) if "How sure" in line)
        assert all("█" not in line and "▒" not in line for line in lines)
        assert "=" in "".join(lines[start : start + 4])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"selected": True}, "4"),
        ({"selected": False}, "4 (provisional: 83 % sure, 95 % asked)"),
        ({"recommended": None, "selected": False}, "none yet"),
    ],
)
def test_a_recommendation_in_a_few_words(changes: dict[str, Any], expected: str) -> None:
    decision = decided(0.5, 0.838, **{"recommended": 4, **changes})
    assert recommendation(decision) == expected
    kept = replace(decision, question="keep", trained_at=16)
    assert recommendation(kept) == expected.replace("4", "4 of 16", 1)


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
    before, *_ = before.split("How sure that")
    assert [line.rstrip() for line in before.splitlines()] == [
        line for line in (decision.answer, decision.evidence) if line
    ]
    for caveat in decision.caveats:
        assert f"Note: {caveat}" in " ".join(table.split())
