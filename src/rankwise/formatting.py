"""Numbers as text for people."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.decide.decision import Decision, Gain, Interval

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
UNLIMITED = (-math.inf, math.inf)


def plain_bytes(count: float) -> str:
    """Return a number of bytes in the largest binary unit that leaves at least 1."""
    size, unit = float(count), 0
    while abs(size) >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {UNITS[unit]}"


def seconds(value: float) -> str:
    """Return a time in seconds, or in minutes from two minutes on."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def signed(value: float) -> str:
    """Return a difference of losses with its sign."""
    return f"{value:+.4f}"


def share(value: float, percent: bool) -> str:
    """Return a task score, in percent if it is a share."""
    return f"{100 * value:.1f} %" if percent else f"{value:.4f}"


def clip(bounds: "Interval", possible: "Interval") -> "Interval":
    """Return the part of an interval that is possible.

    Intervals are a mean plus and minus its error, so they may reach beyond what the metric can be.
    """
    return max(possible[0], bounds[0]), min(possible[1], bounds[1])


def interval(
    bounds: "Interval | None",
    *,
    percent: bool = False,
    sign: bool = False,
    possible: "Interval" = UNLIMITED,
) -> str:
    """Return the possible part of an interval in brackets; an empty text without an interval."""
    if bounds is None:
        return ""
    low, high = clip(bounds, possible)
    if percent:
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"[{low:+.3f}, {high:+.3f}]" if sign else f"[{low:.3f}, {high:.3f}]"


def figure(
    value: float | None,
    bounds: "Interval | None" = None,
    *,
    percent: bool = False,
    sign: bool = False,
    possible: "Interval" = UNLIMITED,
) -> str:
    """Return a figure with the half-width of its interval, or an empty text without a figure.

    Where a part of the interval is impossible, the interval itself stands in place of the width.
    """
    if value is None:
        return ""
    number = f"{100 * value:.1f}" if percent else f"{value:{'+' if sign else ''}.4f}"
    unit = " %" if percent else ""
    if bounds is None:
        return number + unit
    if clip(bounds, possible) != tuple(bounds):
        return f"{number}{unit} {interval(bounds, percent=percent, sign=sign, possible=possible)}"
    half_width = (bounds[1] - bounds[0]) / 2
    if percent:
        return f"{number} ± {100 * half_width:.1f}{unit}"
    return f"{number} ± {half_width:.3f}"


def rank_cells(decision: "Decision", score: str) -> list[dict[str, str]]:
    """Return the decision's table as text: a mapping from column to cell for each rank.

    Cells are empty where nothing was measured.

    Args:
        decision: decision with one row per rank.
        score: name of the task score.
    """
    from rankwise.decide.metrics import is_share, value_range  # loads pandas, which plans avoid

    losses = value_range("loss", [row.loss_mean for row in decision.table])
    score_means = [row.score_mean for row in decision.table]
    scores = value_range(score, score_means)
    # Results of others may give an accuracy in percent already.
    percent = is_share(score) and all(mean is None or mean <= 1 for mean in score_means)
    by_loss = decision.metric == "loss"
    metric, possible = ("loss", losses) if by_loss else (score, scores)
    width = possible[1] - possible[0]
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
                f"gain in {metric}": figure(gain, gain_ci, sign=True, possible=(-width, width)),
            }
        )
    return rows


def decision_sentences(decision: "Decision", score: str) -> list[str]:
    """Return what a decision says, a sentence or two each; ``score`` is what the task score is called."""
    from rankwise.decide.metrics import is_share, value_range

    lines = [decision.reason if decision.rank is not None else f"Undetermined. {decision.reason}"]
    if (
        decision.confirmation is not None and decision.confirmation.status != "contradicts"
    ):  # that is a warning
        lines.append(decision.confirmation.reason)
    if decision.rank_pattern is not None:
        lines.append(decision.rank_pattern.reason)
    if decision.test is not None:
        test, percent = decision.test, is_share(score)
        loss_ci = interval(test.loss_ci, possible=value_range("loss", [test.loss]))
        score_ci = interval(
            test.score_ci, percent=percent, possible=value_range(score, [test.score])
        )
        lines.append(
            f"On {test.examples} test examples that no decision saw: loss {test.loss:.4f} {loss_ci}, "
            f"{score} {share(test.score, percent)} {score_ci}."
        )
    # That a rank suffices is the usual case; the report has the numbers of all.
    telling = [one for one in decision.diagnosis if one.verdict not in ("rank suffices", "open")]
    lines += [f"{one.verdict.capitalize()}: {one.reason}" for one in telling]
    if decision.next is not None:
        lines.append(f"Next: {decision.next.advice}")
    time = training_time(decision.as_dict()["table"])
    return lines + [
        f"Note: {note}" for note in [*decision.warnings, *([] if time is None else [time])]
    ]


def training_time(table: Sequence[Mapping[str, Any]]) -> str | None:
    """Explain a decision's training times if trials trained together; None if each trained alone.

    Args:
        table: rows of the decision's table, as in ``decision.json``.
    """
    packed = [row for row in table if (row.get("pack_size") or 1) > 1]
    if not packed:
        return None
    size = max(row["pack_size"] for row in packed)
    longest = seconds(max(row["pack_seconds"] for row in packed))
    return (
        "Training times are those of one trial training alone, estimated from steps run alone. "
        f"Up to {size} trials trained together; the longest pack took {longest}."
    )


def _text(value: Any, write: Callable[[Any], str]) -> str:
    return "" if value is None else write(value)


def _gain(gain: "Gain | None", by_loss: bool) -> tuple[float | None, "Interval | None"]:
    """Return the gain in the metric that the decision compares, with its interval."""
    if gain is None:
        return None, None
    return (gain.loss, gain.loss_ci) if by_loss else (gain.score, gain.score_ci)
