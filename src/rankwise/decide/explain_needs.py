"""Rank, rate or steps in sentences: what each gains, or what would tell."""

from dataclasses import replace

from rankwise.decide.decision import Capacity, Decision, Need
from rankwise.decide.findings import Findings
from rankwise.decide.wording import Context

STATES = {
    "shown": "yes",
    "ruled out": "no, the gain is within the margin",
    "open": "open",
    "not known": "not known",
}
VERDICTS = {
    "more rank": "More rank: the last step up in rank still gains.",
    "another rate": "Another rate: the rates tried do not enclose the best one.",
    "more steps or data": "More steps or data: longer training still gains.",
    "none of these": "None of these: each gains less than the margin.",
    "not known": "Not known yet.",
}


def explain_need(need: Need, findings: Findings, context: Context) -> Need:
    """Return a need with its sentences."""
    unit = f" {context.wording.unit}" if findings.by_loss else ""
    lead = f"{need.name.capitalize()}: {STATES[need.state]}"
    known = {"more rank": _rank, "another rate": _rate, "more steps or data": _steps}
    if need.gain is None:
        return replace(need, reason=f"{lead}. {_what_would_tell(need, findings, context)}")
    return replace(need, reason=f"{lead}. {known[need.name](need)} {_figure(need, unit)}.")


def needs_sentence(decision: Decision) -> str | None:
    """Return all about rank, rate and steps as one text; None where nothing is known of them."""
    if not decision.needs:
        return None
    sentences = [f"Rank, rate or steps? {VERDICTS[decision.short_of]}"]
    sentences += [need.reason for need in decision.needs]
    if decision.capacity is not None:
        sentences.append(decision.capacity.reason)
    return " ".join(sentences)


def explain_capacity(capacity: Capacity | None) -> Capacity | None:
    """Return the bound by the adapter's size with its sentence."""
    if capacity is None:
        return None
    binds = "so size is no limit"
    if capacity.data_bits > capacity.adapter_bits:
        binds = "so the adapter cannot hold all of it by heart"
    reason = (
        f"Capacity, a bound that nearly never binds: an adapter of rank {capacity.rank} holds at "
        f"most {_bits(capacity.adapter_bits)}, and the training data have about "
        f"{_bits(capacity.data_bits)} to learn, {binds}."
    )
    return replace(capacity, reason=reason)


def _rank(need: Need) -> str:
    return f"From rank {need.start:g} to rank {need.end:g}"


def _rate(need: Need) -> str:
    if need.edge is None:
        return (
            f"At rank {need.rank}, from learning rate {need.start:g} to its neighbour {need.end:g}"
        )
    others = "lower" if need.edge == "lowest" else "higher"
    advice = "" if need.state == "ruled out" else f"; try {others} ones"
    return (
        f"Rank {need.rank} is best at the {need.edge} learning rate tried{advice}. To it, from "
        f"{need.start:g} to {need.end:g},"
    )


def _steps(need: Need) -> str:
    return f"At rank {need.rank}, from {need.start:g} to {need.end:g} steps"


def _figure(need: Need, unit: str) -> str:
    """Return the gain with its interval, as the end of a sentence."""
    assert need.gain_ci is not None  # it comes with the gain
    low, high = need.gain_ci
    return f"the gain is {need.gain:+.4f}{unit} [{low:+.4f}, {high:+.4f}]"


def _what_would_tell(need: Need, findings: Findings, context: Context) -> str:
    """Return the command that would answer, or the evidence that is missing."""
    if need.edge is not None:
        others = "lower" if need.edge == "lowest" else "higher"
        return (
            f"Rank {need.rank} is best at the {need.edge} learning rate tried, and its neighbour "
            f"diverged. Try {others} ones."
        )
    if need.state == "ruled out":
        return f"Training diverges at both neighbours of rank {need.rank}'s learning rate."
    if need.name == "another rate":
        if not context.is_sweep:
            return "Results at several learning rates for a rank would tell."
        return "--learning-rate auto, with another --out, would tell."
    further = findings.further
    if further is not None and not further.results.seeds:
        return "The trial that was to tell diverged."
    if not context.can_diagnose:
        what = "a larger rank" if need.name == "more rank" else "twice the steps"
        return f"Results with {what} would tell."
    if need.name == "more rank" and findings.rule.trained_at is not None:
        return "Training at a smaller rank would tell, as --strategy grid does."
    return "The same command with --diagnose would tell."


def _bits(bits: float) -> str:
    for size, unit in ((1e9, "Gbit"), (1e6, "Mbit"), (1e3, "kbit")):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits:.0f} bits"
