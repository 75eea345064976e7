"""Sentences about the truncations of an adapter, for people."""

from collections.abc import Sequence

from rankwise.decide.sequential import Judgement
from rankwise.decide.variance import LEAST_EXAMPLES
from rankwise.formatting import plain_bytes
from rankwise.shrinking.outcome import (
    SERVED_BYTES,
    AdapterDecision,
    CutRow,
    Healing,
    Verdict,
    vllm_rank,
)


def short_unit(unit: str) -> str:
    """Return "nats" for "nats per example"."""
    return unit.partition(" per ")[0]


def answer(
    verdict: Verdict, own: int, chosen: CutRow | None, margin: float, confidence: float, unit: str
) -> str:
    """Return the decision about one adapter in a sentence."""
    short = short_unit(unit)
    if verdict == "nothing-learnt":
        return (
            "The adapter is not shown to have learnt anything: on these examples its loss is not "
            "shown to be below that without it and below that of guessing."
        )
    if chosen is None:
        return (
            f"Keep rank {own}: no smaller rank is shown to cost at most {margin:.3g} {short}, at "
            f"{100 * confidence:.4g} % confidence."
        )
    after, which = ("", "truncated")
    if chosen.healed:
        after, which = " after a short training", "healed"
    return (
        f"Rank {chosen.rank} of {own} is enough{after}: the {which} adapter is at most "
        f"{max(chosen.upper, 0.0):.4f} {short} worse, within your margin of {margin:.3g}, at "
        f"{100 * confidence:.4g} % confidence."
    )


def evidence(rows: Sequence[CutRow], against_empty: Judgement, scored: int, held_out: int) -> str:
    """Return what a decision rests on."""
    how_many = f"all {held_out:,} held-out examples were scored"
    if scored < held_out:
        how_many = f"{scored:,} of {held_out:,} held-out examples were enough"
    sentences = [
        "Ranks were tried from the largest down, each against the full adapter on the same "
        f"examples; {how_many}."
    ]
    stopped = next((row for row in rows if row.outcome in ("worse", "open")), None)
    if stopped is not None:
        how = "is shown to cost more" if stopped.outcome == "worse" else "stays open"
        sentences.append(
            f"Rank {stopped.rank} {how}: {stopped.difference:+.4f}, between {stopped.lower:+.4f} "
            f"and {stopped.upper:+.4f}."
        )
    sentences.append(f"Without its low-rank update the loss changes by {-against_empty.mean:+.4f}.")
    return " ".join(sentences)


def healing(trained: Healing | None, rows: Sequence[CutRow]) -> str:
    """Return what a training after the cut has brought, as a further sentence."""
    if trained is None:
        return ""
    row = next(row for row in rows if row.healed)
    how = {"within": "so it holds", "worse": "which costs more than the margin"}
    result = how.get(row.outcome, "which stays open")
    if row.outcome == "within" and not trained.taken:
        result = "so it holds, but the cut before has the lower loss and is kept"
    return (
        f" Trained on for {trained.steps} steps at rank {trained.rank} (learning rate "
        f"{trained.learning_rate:g}), the cut's difference is {row.difference:+.4f}, between "
        f"{row.lower:+.4f} and {row.upper:+.4f}, {result}."
    )


def what_would_settle(rows: Sequence[CutRow], margin: float) -> list[str]:
    """Return how many examples would settle the first rank that is open, if that can be said."""
    for row in rows:
        if row.outcome == "worse":
            break
        if row.outcome != "open":
            continue
        if row.difference >= margin or row.examples < LEAST_EXAMPLES:
            break
        needed = row.examples * ((row.upper - row.difference) / (margin - row.difference)) ** 2
        return [
            f"About {round(needed, -2):,.0f} held-out examples would show that rank {row.rank} is "
            "within the margin, if the difference stays as it is."
        ]
    return []


def serving(decisions: Sequence[AdapterDecision], rank: int | None, heads: bool) -> list[str]:
    """Return what a server that holds these adapters saves, in sentences.

    Args:
        decisions: the decision about each adapter.
        rank: smallest rank that holds for all.
        heads: whether an adapter has modules trained in full.
    """
    if rank is None:
        return []
    own = max(each.own_rank for each in decisions)
    before, after = vllm_rank(own), vllm_rank(rank)
    lines = []
    if after is not None:
        lines.append(f"vLLM: --enable-lora --max-lora-rank {after}")
        if before is not None and after < before:
            per_rank = max(each.full.params / each.own_rank for each in decisions) * SERVED_BYTES
            lines.append(
                f"vLLM keeps room for the largest rank in every slot: at least "
                f"{plain_bytes(per_rank * after)} for each adapter instead of "
                f"{plain_bytes(per_rank * before)} (rank {before})."
            )
        elif rank < own:
            lines.append(f"vLLM has no smaller room than rank {after} for these adapters.")
    saved = sum(each.full.bytes - (each.chosen or each.full).bytes for each in decisions)
    if saved:
        total = sum(each.full.bytes for each in decisions)
        lines.append(
            "S-LoRA, LoRAX and servers like them load an adapter at its own rank: "
            f"{plain_bytes(total - saved)} instead of {plain_bytes(total)} to store and to move."
        )
    if heads:
        lines.append(
            "An adapter has modules trained in full (modules_to_save), which vLLM does not load."
        )
    return lines
