"""The caveats of a decision: what a reader should know before relying on it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from rankwise.decide.evidence import RankResults
from rankwise.decide.findings import Findings
from rankwise.decide.metrics import LOSS_MARGIN, OTHER_MARGIN, SHARE_MARGIN
from rankwise.decide.wording import Context, listed
from rankwise.errors import some

MUCH_WORSE = 0.25  # a seed is named if it learnt less than another by this share
COLLAPSED = 0.25  # training has collapsed if it learns at most this share of what another rate does


def caveats(findings: Findings, context: Context) -> Iterator[str]:
    """Yield the caveats, those that bear on the whole decision first."""
    rule, left_out = findings.rule, context.left_out
    if left_out is not None:
        yield (
            f"The budget of {left_out.budget:g} min is spent. About {left_out.trials} trials are "
            f"left out; the next is rank {left_out.rank} at learning rate "
            f"{left_out.learning_rate:g} with seed {left_out.seed}. The same command with a larger "
            "--budget continues from there."
        )
    if context.failed:
        verb = "trial failed and counts" if len(context.failed) == 1 else "trials failed and count"
        yield (
            f"{len(context.failed)} {verb} as diverged: {some(context.failed, 3)}. Delete its "
            "directory, and the same command trains it again."
        )
    if rule.margin is None and findings.margin not in (LOSS_MARGIN, SHARE_MARGIN):
        yield (
            f"No margin was given for {rule.metric}. The decision uses {OTHER_MARGIN:.0%} of its "
            f"mean, {findings.margin:.3g}."
        )
    yield from _about_seeds(findings)
    if rule.trained_at is None:
        yield from _about_single_rates(findings.results)
    if not findings.nothing_learnt:
        yield from _about_edges(findings)
        yield from _about_collapse(findings, context)
    yield from _about_unsteady_seeds(findings, context.wording.chance)
    if findings.rank is not None:
        yield from _about_choice(findings, findings.rank, context.wording.chance)


def _about_seeds(findings: Findings) -> Iterator[str]:
    most_seeds = max(len(one.seeds) for one in findings.results)
    if findings.fixed_seeds:
        yield (
            "The question is about the adapters that were trained, so only the choice of held-out "
            "examples is taken to be random, and the adapters of all seeds must agree."
        )
    elif findings.rule.noise is None and findings.examples > 1 and most_seeds == 1:
        yield (
            "Only one seed was run. The intervals cover the choice of held-out examples, but not "
            "the effect of initial values and data order. Run at least 2 seeds."
        )
    dead = [one.rank for one in findings.results if not one.seeds]
    if dead:
        ranks = f"Rank {dead[0]} is" if len(dead) == 1 else f"Ranks {listed(dead)} are"
        yield f"{ranks} left out: at every learning rate tried, training diverged with some seed."


def _about_single_rates(results: Sequence[RankResults]) -> Iterator[str]:
    rates = {rate for one in results for rate in one.rates}
    if len(results) < 2:
        return
    if len(rates) == 1:
        yield (
            "Rank and learning rate are confounded: all ranks ran at one learning rate, or none is "
            "recorded. With lora_alpha = r a larger rank learns faster at the same rate, so an "
            "apparent effect of rank may be an effect of the rate. On the built-in task, rank 32 "
            "looked 0.18 nats better than rank 2 at one rate, and 0.00 nats better with each at "
            "its best rate (docs/learning-rate.md). Try several rates for each rank."
        )
    elif all(len(one.rates) == 1 for one in results):
        each = ", ".join(f"{one.rank} at {one.rates[0]:g}" for one in results)
        yield (
            "Rank and learning rate are confounded: each rank ran at one learning rate, and these "
            f"differ (rank {each}). An apparent effect of rank may be an effect of the rate, "
            "unless each rate is the best of several tried for its rank (docs/learning-rate.md)."
        )


def _about_edges(findings: Findings) -> Iterator[str]:
    for one in findings.results:
        if len(one.rates) < 2 or one.learning_rate not in (one.rates[0], one.rates[-1]):
            continue
        at_lowest = one.learning_rate == one.rates[0]
        is_kept = findings.rule.trained_at is not None
        if is_kept and at_lowest and not one.rate_costs[1] - one.rate_costs[0] <= findings.margin:
            continue  # such a rate is near the best for one adapter (docs/learning-rate.md)
        edge, others = ("lowest", "lower") if at_lowest else ("highest", "higher")
        yield (
            f"Rank {one.rank} is best at the {edge} learning rate tried for it "
            f"({one.learning_rate:g}). Try {others} rates."
        )


def _about_collapse(findings: Findings, context: Context) -> Iterator[str]:
    """Name the rate nearest to those used, as a ratio, at which training collapses.

    A trial that failed, as by a wrong path, says nothing about its rate.
    """
    failed = {(trial.rank, trial.learning_rate) for trial in context.failed}
    chance = findings.rule.chance_loss if findings.by_loss else None
    found = []
    for one in findings.results:
        if one.learning_rate is None:
            continue
        used = one.rate_costs[one.rates.index(one.learning_rate)]
        limit = math.inf
        if chance is not None:
            limit = COLLAPSED * used + (1 - COLLAPSED) * float(np.mean(chance))
        for rate, cost in zip(one.rates, one.rate_costs, strict=True):
            collapses = not cost < limit  # also where it diverged
            if collapses and rate > one.learning_rate and (one.rank, rate) not in failed:
                found.append((rate / one.learning_rate, rate, one.rank))
    if found:
        ratio, rate, rank = min(found)
        yield (
            f"Training collapses at a learning rate of {rate:g} at rank {rank}, {ratio:.2g} times "
            "the one used. Do not raise it that far."
        )


def _about_unsteady_seeds(findings: Findings, chance: str) -> Iterator[str]:
    """Name the seeds that learnt nothing, or much less than another seed of the same rank."""
    for rank, trials in findings.learnt.items():
        best = min(trials, key=lambda one: one.mean)
        if not best.is_shown:
            continue
        for one in trials:
            if one.seed is None or one.mean - best.mean <= findings.margin:
                continue
            if not one.is_shown:
                yield (
                    f"Seed {one.seed} of rank {rank} learnt nothing: its loss is not below what "
                    f"{chance} gives, while seed {best.seed} learnt. A lower learning rate would "
                    "be steadier."
                )
            elif one.mean > (1 - MUCH_WORSE) * best.mean:  # both are negative
                yield (
                    f"Seed {one.seed} is much worse than seed {best.seed} at rank {rank}: it "
                    f"learnt {one.mean / best.mean:.0%} as much. Training is near a cliff; a "
                    "lower learning rate would be steadier."
                )


def _about_choice(findings: Findings, rank: int, chance: str) -> Iterator[str]:
    if rank in findings.learnt and not any(one.is_shown for one in findings.learnt[rank]):
        yield (
            f"Rank {rank} itself is not shown to get below what {chance} gives. It is chosen "
            f"because other ranks gain at most the margin of {findings.margin:.3g}, which may be "
            "all that can be learnt. Try a smaller margin."
        )
    *_, smaller, largest = findings.comparison.ranks  # a rank is chosen among two at least
    gain = findings.comparison.difference(smaller, largest).mean
    if findings.rule.trained_at is None and rank == largest and gain > findings.margin:
        yield (
            f"Rank {rank} is the largest tried, and better than rank {smaller} by more than the "
            f"margin. Larger ranks may be better still: try {2 * rank}."
        )
    confirmation = findings.confirmation
    if confirmation is not None and confirmation.lead is not None:
        yield (
            f"The task score contradicts the loss: rank {confirmation.leader} scores "
            f"{confirmation.lead:.4f} higher than rank {rank}."
        )
