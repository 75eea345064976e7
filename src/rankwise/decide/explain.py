"""The decision in sentences: answer, evidence, advice. Caveats are in `rankwise.decide.caveats`."""

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from statistics import fmean

from rankwise.decide.caveats import caveats
from rankwise.decide.decision import Confirmation, Decision, Diagnosis, Next, RankPattern
from rankwise.decide.explain_needs import explain_capacity, explain_need
from rankwise.decide.findings import Findings
from rankwise.decide.needs import short_of
from rankwise.decide.power import detectable_difference
from rankwise.decide.variance import LEAST_EXAMPLES
from rankwise.decide.wording import (
    Context,
    Wording,
    counted,
    counted_range,
    listed,
    percent,
    without_exponent,
)
from rankwise.formatting import sure

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
    recommended = findings.recommended
    bound = None if recommended is None else findings.bounds.get(recommended)
    if rank is None:
        answer = _provisional_answer(findings, context, unit)
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
        next=tuple(_advice(findings, context)),
        table=findings.table,
        confirmation=confirmation,
        diagnosis=tuple(_diagnosis(one, findings.margin) for one in findings.diagnosis),
        detectable_difference=detectable_difference(findings.comparison, rule.confidence),
        question="train" if rule.trained_at is None else "keep",
        trained_at=rule.trained_at,
        rank_pattern=_rank_pattern(context.rank_pattern, wording),
        test=context.test,
        recommended=recommended,
        confidence_reached=None if recommended is None else findings.confidences.get(recommended),
        margin_reached=None if bound is None else max(0.0, bound.upper),
        needs=tuple(explain_need(need, findings, context) for need in findings.needs),
        short_of=short_of(findings.needs),
        capacity=explain_capacity(context.capacity),
    )


def _answer(findings: Findings, rank: int, unit: str) -> str:
    rule, upper = findings.rule, findings.bounds[rank].upper
    lead = f"{_use(findings, rank)}."
    confidence = percent(rule.confidence)
    if upper < 0:
        return f"{lead} It is better than every other rank tried, at {confidence} confidence."
    metric = "" if findings.by_loss else f" in {rule.metric}"
    whose = "the" if rule.margin is None else "your"
    return (
        f"{lead} It is at most {without_exponent(upper)}{unit} worse{metric} than the best rank "
        f"tried, within {whose} margin of {findings.margin:.3g}, at {confidence} confidence."
    )


def _use(findings: Findings, rank: int) -> str:
    if findings.rule.trained_at is None:
        return f"Use rank {rank}"
    after = ""
    if any(one.healed for one in findings.results if one.rank == rank):
        after = f" and, after the cut, briefly at rank {rank}"
    return f"Keep rank {rank} of an adapter trained at rank {findings.rule.trained_at}{after}"


def _provisional_answer(findings: Findings, context: Context, unit: str) -> str:
    """Return what to use for now and how sure it is, or why nothing can be recommended."""
    rank = findings.recommended
    if rank is None:
        problem, remedy = _problem(findings, context.wording)
        return f"No rank can be recommended yet: {problem}. {remedy}"
    lead = f"{_use(findings, rank)} for now"
    if context.left_out is not None:
        lead = f"The budget ended the sweep early. {lead}"
    bound = findings.bounds.get(rank)
    if bound is None or not isfinite(bound.upper):
        problem, remedy = _problem(findings, context.wording)
        return f"{lead}, without a measure of how sure that is: {problem}. {remedy}"
    reached = sure(findings.confidences[rank], findings.rule.confidence)
    metric = "" if findings.by_loss else f" in {findings.rule.metric}"
    confidence = percent(findings.rule.confidence)
    return (
        f"{lead}: {reached} sure that it is within {findings.margin:.3g}{unit} of the best{metric} "
        f"(you asked for {confidence}); at {confidence}, within "
        f"{without_exponent(bound.upper)}{unit}."
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


def _problem(findings: Findings, wording: Wording) -> tuple[str, str]:
    """Return why nothing shows how sure a choice is, and what to do about it."""
    alive = findings.alive
    if findings.nothing_learnt:
        return "no adapter is shown to have learnt anything", _learn_first(findings, wording)
    if len(alive) < 2:
        return (
            "fewer than two ranks trained without diverging, so there is nothing to compare",
            "Run more ranks, or lower learning rates.",
        )
    if findings.too_few_examples:
        return (
            f"{counted(findings.examples, 'held-out example')} cannot show how much examples vary",
            f"Hold out at least {LEAST_EXAMPLES}.",
        )
    if findings.bounds:
        return (
            "the ranks share no seed and no rank has two, so nothing shows how much seeds vary",
            "Run at least 2 seeds for each rank.",
        )
    if max(len(one.seeds) for one in alive) > 1:
        return (
            "the ranks differ by the same amount with every seed, so the noise cannot be estimated",
            "The results may be copies, or rounded. Keep results per example, run more seeds, or "
            "state the noise if you know it.",
        )
    return (
        "there is a single number for each rank, and nothing shows how much it would vary",
        "Run at least 2 seeds, keep results per example, or state the noise if you know it.",
    )


def _learn_first(findings: Findings, wording: Wording) -> str:
    if min(one.mean for trials in findings.learnt.values() for one in trials) < 0:
        return (
            f"Some losses are below what {wording.chance} gives, so more seeds or held-out "
            "examples may show a gain. Longer training or other learning rates may make it clearer."
        )
    return (
        "Try other learning rates: lower ones where the loss is above what "
        f"{wording.chance} gives, higher ones where it does not move. More epochs or more training "
        "data may also help."
    )


def _open_evidence(findings: Findings, wording: Wording, unit: str) -> str:
    if len(findings.alive) < 2:
        return ""
    compared, bounds = _what_was_compared(findings), findings.bounds
    if findings.losses is not None and findings.nothing_learnt:
        trials = [(one, rank) for rank, some in findings.learnt.items() for one in some]
        nearest, rank = min(trials, key=lambda trial: trial[0].upper)
        chance = findings.losses.mean(rank) - fmean(one.mean for one in findings.learnt[rank])
        seed = "" if nearest.seed is None else f" with seed {nearest.seed}"
        return (
            f"{compared} Rank {rank}{seed} comes nearest to a gain: its held-out loss of "
            f"{chance + nearest.mean:.4f} {wording.unit} may be up to "
            f"{chance + nearest.upper:.4f}, and {wording.chance} gives {chance:.4f}."
        )
    recommended = findings.recommended
    if recommended in bounds and isfinite(bounds[recommended].upper):
        return f"{compared} {_against(findings, recommended, unit)}"
    return compared


def _advice(findings: Findings, context: Context) -> Iterator[Next]:
    """Yield the next steps with their advice; trials that a budget left out come before any."""
    if context.left_out is not None:
        return
    for step in findings.next:
        yield replace(step, advice=_advise(findings, context, step))


def _advise(findings: Findings, context: Context, step: Next) -> str:
    """Return one step's advice, with its chance, its time and its command."""
    if step.action == "margin":
        unit = f" {context.wording.unit}" if findings.by_loss else ""
        margin = without_exponent(step.margin)
        return f"Accept a margin of {margin}{unit}: rank {step.rank} is within it already."
    what = f"Score on {step.held_out_examples:,} held-out examples, if the data have them"
    if step.action == "seeds":
        ranks = "every rank"
        if len(step.ranks) < len(findings.alive):
            ranks = f"ranks {listed(step.ranks)}"
        what = f"Train {ranks} with {step.seeds} seeds"
    chance = percent(round(step.probability or 0.0, 2))
    if (step.probability or 0.0) > 0.99:  # a simulated chance is not that exact
        chance = "more than 99 %"
    advice = f"{what}: a chance of {chance} to settle it, most likely at rank {step.rank}"
    if step.estimated_seconds:
        advice += f", in about {max(1, round(step.estimated_seconds / 60)):,} min of training"
    if context.is_sweep and step.action == "seeds":
        some = ""
        if len(step.ranks) < len(findings.alive):
            some = f" --ranks {','.join(map(str, step.ranks))}"
        advice += f" (the same command with --extend{some} --seeds {step.seeds})"
    return f"{advice}."


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
