"""The decision in sentences: answer, evidence, advice. Caveats are in `rankwise.decide.caveats`."""

from dataclasses import replace
from math import isfinite

from rankwise.decide.caveats import caveats
from rankwise.decide.decision import Confirmation, Decision, Diagnosis, Next, RankPattern
from rankwise.decide.findings import Findings
from rankwise.decide.power import MOST_EXAMPLES, MOST_SEEDS, POWER, detectable_difference
from rankwise.decide.wording import (
    Context,
    Wording,
    counted,
    counted_range,
    listed,
    percent,
    without_exponent,
)

TAKEAWAYS = {
    "overfitting": "Rank {next_rank} overfits. Regularise: fewer steps, more data, dropout or "
    "weight decay.",
    "rank suffices": "Rank {rank} suffices: it gives up less than {margin:g}.",
    "raise the rank": "Rank {rank} underfits.",
    "not a rank problem": "Look at the learning rate, the target modules and the number of steps.",
    "open": "The evidence does not settle it.",
}


def explain(findings: Findings, context: Context) -> Decision:
    """Put findings into words, and return the whole decision."""
    rule, rank, wording = findings.rule, findings.rank, context.wording
    unit = f" {wording.unit}" if findings.by_loss else ""
    confirmation = _confirmation(findings.confirmation, rank)
    if rank is None:
        problem, remedy = _problem(findings, wording, unit)
        if context.left_out is not None:
            remedy = "Run the same command with a larger --budget first."
        answer = f"No rank can be recommended yet: {problem}. {remedy}"
        evidence = _open_evidence(findings, wording, unit)
    else:
        answer = _answer(findings, rank, unit)
        evidence = (
            f"{_what_was_compared(findings)} Rank {rank} is the smallest that stays within the "
            f"margin. {_against(findings, rank, unit)}"
        )
        if confirmation is not None:
            evidence = f"{evidence} {confirmation.reason}"
    return Decision(
        verdict="undetermined" if rank is None else "selected",
        rank=rank,
        metric=rule.metric,
        margin=findings.margin,
        confidence=rule.confidence,
        answer=answer,
        evidence=evidence,
        caveats=tuple(caveats(findings, context)),
        next=_next(findings, context),
        table=findings.table,
        confirmation=confirmation,
        diagnosis=tuple(_diagnosis(one, findings.margin) for one in findings.diagnosis),
        detectable_difference=detectable_difference(findings.comparison, rule.confidence),
        question="train" if rule.trained_at is None else "keep",
        trained_at=rule.trained_at,
        rank_pattern=_rank_pattern(context.rank_pattern, wording),
        test=context.test,
    )


def _answer(findings: Findings, rank: int, unit: str) -> str:
    rule, upper = findings.rule, findings.bounds[rank].upper
    lead = f"Use rank {rank}."
    if rule.trained_at is not None:
        lead = f"Keep rank {rank} of an adapter trained at rank {rule.trained_at}."
    confidence = percent(rule.confidence)
    if upper < 0:
        return f"{lead} It is better than every other rank tried, at {confidence} confidence."
    metric = "" if findings.by_loss else f" in {rule.metric}"
    whose = "the" if rule.margin is None else "your"
    return (
        f"{lead} It is at most {without_exponent(upper)}{unit} worse{metric} than the best rank "
        f"tried, within {whose} margin of {findings.margin:.3g}, at {confidence} confidence."
    )


def _what_was_compared(findings: Findings) -> str:
    alive = findings.alive
    metric = "held-out loss" if findings.by_loss else findings.rule.metric
    seeds = counted_range((len(one.seeds) for one in alive), "seed")
    each = ", with one result per trial"
    if findings.examples > 1:
        each = f" and {counted(findings.examples, 'example')}"
    rates = ""
    if any(len(one.rates) > 1 for one in alive):
        rates = ", each at its best learning rate"
    ranks = listed([one.rank for one in alive])
    return f"Ranks {ranks} were compared by {metric}, over {seeds}{each}{rates}."


def _against(findings: Findings, rank: int, unit: str) -> str:
    """Compare a rank with the rank that sets its bound."""
    upper, against = findings.bounds[rank]
    mean = findings.comparison.difference(rank, against).mean
    side = "worse" if mean >= 0 else "better"
    limit = f"{abs(upper):.4f}{unit}"
    may_be = f"and may be up to {limit} worse"
    if upper < 0:
        may_be = f"and is at least {limit} better"
    elif mean < 0:
        may_be = f"but may be up to {limit} worse"
    return f"Compared with rank {against}, it was {abs(mean):.4f}{unit} {side} on average {may_be}."


def _problem(findings: Findings, wording: Wording, unit: str) -> tuple[str, str]:
    """Return why no rank was chosen, and what to do about it."""
    alive, bounds = findings.alive, findings.bounds
    if len(alive) < 2:
        return (
            "fewer than two ranks trained without diverging, so there is nothing to compare",
            "Run more ranks, or lower learning rates.",
        )
    if not bounds and max(len(one.seeds) for one in alive) > 1:
        return (
            "the ranks differ by the same amount with every seed, so the noise cannot be estimated",
            "The results may be copies, or rounded. Keep results per example, run more seeds, or "
            "state the noise if you know it.",
        )
    if not bounds:
        return (
            "there is a single number for each rank, and nothing shows how much it would vary",
            "Run at least 2 seeds, keep results per example, or state the noise if you know it.",
        )
    if findings.nothing_learnt:
        return "none is shown to have learnt anything", _learn_first(findings, wording)
    if not any(isfinite(bound.upper) for bound in bounds.values()):
        return (
            "the ranks share no seed and no rank has two, so nothing shows how much seeds vary",
            "Run at least 2 seeds for each rank.",
        )
    return (
        f"none is shown to be within {findings.margin:.3g}{unit} of the best at "
        f"{percent(findings.rule.confidence)} confidence",
        _what_would_settle_it(findings),
    )


def _learn_first(findings: Findings, wording: Wording) -> str:
    if min(above.mean for above in findings.above_chance.values()) < 0:
        return (
            f"Some losses are below what {wording.chance} gives, so more seeds or held-out "
            "examples may show a gain. Longer training or other learning rates may make it clearer."
        )
    return (
        "Try other learning rates: lower ones where the loss is above what "
        f"{wording.chance} gives, higher ones where it does not move. More epochs or more training "
        "data may also help."
    )


def _what_would_settle_it(findings: Findings) -> str:
    if findings.next is not None:
        return f"Next, run {_amount_to_run(findings, findings.next)}."
    examples = f" and {MOST_EXAMPLES} times the held-out examples" if findings.examples > 1 else ""
    return (
        f"Even {MOST_SEEDS} seeds{examples} would not settle it if the differences seen persist; "
        "a larger margin would."
    )


def _open_evidence(findings: Findings, wording: Wording, unit: str) -> str:
    if len(findings.alive) < 2:
        return ""
    compared, bounds = _what_was_compared(findings), findings.bounds
    if bounds and findings.losses is not None and findings.nothing_learnt:
        rank = min(findings.above_chance, key=lambda one: findings.above_chance[one].upper)
        above, loss = findings.above_chance[rank], findings.losses.mean(rank)
        chance = loss - above.mean
        return (
            f"{compared} Rank {rank} comes nearest to a gain: its held-out loss of {loss:.4f} "
            f"{wording.unit} may be up to {chance + above.upper:.4f}, and {wording.chance} gives "
            f"{chance:.4f}."
        )
    if any(isfinite(bound.upper) for bound in bounds.values()):
        rank = min(bounds, key=lambda one: bounds[one].upper)
        return f"{compared} Rank {rank} comes nearest. {_against(findings, rank, unit)}"
    return compared


def _amount_to_run(findings: Findings, step: Next) -> str:
    seeds = f"{step.seeds} seeds per rank"
    if step.held_out_examples == findings.examples:
        return seeds
    return f"{seeds} and {step.held_out_examples:,} held-out examples"


def _next(findings: Findings, context: Context) -> Next | None:
    """Return the next step with its advice; none if a budget left out trials, which come first."""
    step = findings.next
    if step is None or context.left_out is not None:
        return None
    advice = (
        f"Run {_amount_to_run(findings, step)}. If the differences seen persist, this selects rank "
        f"{step.rank} or a smaller one with a probability of {percent(POWER)}."
    )
    if step.estimated_seconds:
        minutes = max(1, round(step.estimated_seconds / 60))
        advice += f" The additional training takes about {minutes:,} min."
    if context.is_sweep and step.held_out_examples == findings.examples:
        advice += f" To do so, run the same command with --seeds {step.seeds} --extend."
    return replace(step, advice=advice)


def _confirmation(confirmation: Confirmation | None, rank: int | None) -> Confirmation | None:
    if confirmation is None:
        return None
    bound = f"{confirmation.bound:.4f}"
    if confirmation.status == "contradicts":
        reason = (
            f"contradicts it: rank {confirmation.leader} scores {confirmation.lead:.4f} higher "
            f"than rank {rank}"
        )
    elif confirmation.status == "cannot tell":
        reason = (
            f"cannot tell at its margin of {confirmation.margin:.3g}: rank {rank} may score up to "
            f"{bound} lower than rank {confirmation.against}"
        )
    elif confirmation.bound < 1e-4:
        reason = f"confirms it: rank {rank} scores no lower than the best other rank"
    else:
        reason = f"confirms it: rank {rank} scores at most {bound} lower than the best other rank"
    return replace(confirmation, reason=f"The task score {reason}.")


def _diagnosis(diagnosis: Diagnosis, margin: float) -> Diagnosis:
    low, high = diagnosis.held_out_ci
    gains = (
        f"From rank {diagnosis.rank} to rank {diagnosis.next_rank} the held-out gain is "
        f"{diagnosis.held_out_gap:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
    if diagnosis.train_gap is not None and diagnosis.train_ci is not None:
        late_low, late_high = diagnosis.train_ci
        gains += (
            f", and the gain in training loss is {diagnosis.train_gap:+.4f} "
            f"[{late_low:+.4f}, {late_high:+.4f}]"
        )
    takeaway = TAKEAWAYS[diagnosis.verdict].format(
        rank=diagnosis.rank, next_rank=diagnosis.next_rank, margin=margin
    )
    if diagnosis.verdict == "open" and high < 0:
        takeaway = "Training losses would show whether the larger rank overfits or its rate is off."
    return replace(diagnosis, reason=f"{gains}. {takeaway}")


def _rank_pattern(pattern: RankPattern | None, wording: Wording) -> RankPattern | None:
    if pattern is None:
        return None
    low, high = pattern.gain_ci
    least, most = min(pattern.ranks.values()), max(pattern.ranks.values())
    verdict = "It is not shown to be better than one rank for all layers."
    if pattern.better:
        verdict = "It is better than one rank for all layers, and is offered in best-rank-pattern/."
    reason = (
        f"An adapter of the same size with a rank for each layer ({least} to {most}, "
        f"{pattern.entries:,} entries) lowers the held-out loss by {pattern.gain:+.4f} "
        f"{wording.unit} [{low:+.4f}, {high:+.4f}]. {verdict}"
    )
    return replace(pattern, reason=reason)
