"""The whole decision as lines and table cells, for the terminal, the page and the model card."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankwise.decide.decision import Decision, Gain, TestScore
from rankwise.decide.explain_needs import needs_sentence
from rankwise.decide.metrics import is_share, value_range
from rankwise.formatting import Interval, figure, interval, plain_bytes, seconds, share


def decision_sentences(decision: Decision, score: str) -> list[str]:
    """Return a decision as sentences, the answer first; ``score`` is the name of the task score."""
    lines = [decision.answer, decision.evidence]
    if decision.rank_pattern is not None:
        lines.append(decision.rank_pattern.reason)
    if decision.test is not None:
        lines.append(unseen_data_sentence(decision.test, score))
    for one in decision.diagnosis:
        # Most ranks suffice or are open; the report has the numbers of all.
        if one.verdict not in ("rank suffices", "open"):
            lines.append(f"{one.verdict.capitalize()}: {one.reason}")
    lines.append(needs_sentence(decision) or "")
    lines += [f"Next: {step.advice}" for step in decision.next]
    lines += [f"Note: {caveat}" for caveat in decision.caveats]
    if time := training_time_note(decision.as_dict()["table"]):
        lines.append(f"Note: {time}")
    return [line for line in lines if line]


def unseen_data_sentence(test: TestScore, score: str) -> str:
    """Report the recommended adapter's test results; ``score`` is the name of the task score."""
    percent = is_share(score)
    loss_ci = interval(test.loss_ci, possible=value_range("loss", [test.loss]))
    possible = value_range(score, [test.score])
    score_ci = interval(test.score_ci, percent=percent, possible=possible)
    return (
        f"On {test.examples} test examples that played no part in the decision, the recommended "
        f"adapter has {score} {share(test.score, percent)} {score_ci} and loss "
        f"{test.loss:.4f} {loss_ci}."
    )


def training_time_note(table: Sequence[Mapping[str, Any]]) -> str | None:
    """Explain the training times in ``decision.json``'s table if trials trained together."""
    packed = [row for row in table if (row.get("pack_size") or 1) > 1]
    if not packed:
        return None
    size = max(row["pack_size"] for row in packed)
    longest = seconds(max(row["pack_seconds"] for row in packed))
    return (
        "Training times are those of one trial training alone, estimated from steps run alone. "
        f"Up to {size} trials trained together; the longest pack took {longest}."
    )


def rank_cells(decision: Decision, score: str) -> list[dict[str, str]]:
    """Return the decision's table as text: a mapping from column to cell for each rank.

    Cells are empty where nothing was measured. ``score`` is the name of the task score.
    """
    losses = value_range("loss", [row.loss_mean for row in decision.table])
    score_means = [row.score_mean for row in decision.table]
    scores = value_range(score, score_means)
    # Results of others may give an accuracy in percent already.
    percent = is_share(score) and all(mean is None or mean <= 1 for mean in score_means)
    by_loss = decision.metric == "loss"
    metric, (low, high) = ("loss", losses) if by_loss else (score, scores)
    limits = (low - high, high - low)
    rows = []
    for row in decision.table:
        loss = figure(row.loss_mean, row.loss_ci, possible=losses)
        scored = figure(row.score_mean, row.score_ci, percent=percent, possible=scores)
        diverged = "" if row.seeds else "diverged"
        gain, gain_ci = _gain(row.gain_over_previous, by_loss)
        rows.append(
            {
                "rank": str(row.rank),
                "trainable parameters": _text(row.trainable_params, "{:,}".format),
                "learning rate": _text(row.learning_rate, "{:g}".format),
                "held-out loss": loss or (diverged if by_loss else ""),
                score: scored or (diverged if not by_loss else ""),
                "training time": _text(row.train_seconds, seconds),
                "peak memory": _text(row.peak_memory_bytes, plain_bytes),
                f"gain in {metric}": figure(gain, gain_ci, sign=True, possible=limits),
            }
        )
    return rows


def _text(value: Any, write: Callable[[Any], str]) -> str:
    return "" if value is None else write(value)


def _gain(gain: Gain | None, by_loss: bool) -> tuple[float | None, Interval | None]:
    """Return the gain in the metric that the decision compares, with its interval."""
    if gain is None:
        return None, None
    return (gain.loss, gain.loss_ci) if by_loss else (gain.score, gain.score_ci)
