"""Cuts whose layers share the parameters by energy, held against the cuts to one rank at the same size."""

from collections.abc import Sequence

import numpy as np

from rankwise.decide.decision import Decision, RankPattern
from rankwise.decide.evidence import RankResults
from rankwise.decide.pairwise import Comparison
from rankwise.engine.trial import Engine
from rankwise.lora import ranks_by_budget, read_adapter, spectrum, truncate
from rankwise.lora.adapter import Adapter
from rankwise.store.directory import RANK_PATTERN_DIRECTORY, SweepStore
from rankwise.store.records import TrialRecord

PATTERN = 0  # what they are called among the ranks


def try_rank_pattern(
    decision: Decision,
    runs: Sequence[RankResults],
    cuts: Sequence[TrialRecord],
    store: SweepStore,
    engine: Engine,
) -> tuple[RankPattern | None, Adapter | None]:
    """Cut the trained adapters once more, each layer to a rank of its own, and compare with the chosen rank's cuts.

    Every seed's adapter gets a rank for each layer from its own singular values (`rankwise.lora.ranks_by_budget`), and
    as many entries as the chosen rank takes. The two kinds of cuts are compared as two ranks are: seed by seed and
    example by example, with the seed variance that all ranks show.

    Args:
        decision: which rank to keep.
        runs: the evidence that it is made from.
        cuts: the chosen rank's cuts, best first.
        store: holds the trained adapters.
        engine: scores.

    Returns:
        The comparison, None where every layer gets the rank that it had; and, if it is better, the cut of the adapter
        that the best of ``cuts`` is made from.
    """
    rank = decision.rank
    assert rank is not None
    sources = [cut.truncated_from for cut in cuts if cut.truncated_from is not None]
    found = [spectrum(read_adapter(store.adapter_directory(name))) for name in sources]
    # The adapter's own rank, which is twice that of the trial where it was saved for the original base (PiSSA, OLoRA).
    entries = found[0].params // found[0].largest_rank * rank
    ranks = [ranks_by_budget(one, entries) for one in found]
    if all(set(own.values()) == {rank} for own in ranks):
        return None, None
    adapters = [truncate(one, own) for one, own in zip(found, ranks, strict=True)]
    alive = [run for run in runs if run.seeds]
    examples = alive[0].examples
    losses = {
        cut.seed: scored.set_index("example_id")["loss"].loc[examples]
        for cut, scored in zip(cuts, engine.score(adapters), strict=True)
    }
    seeds = sorted(losses)
    costs = Comparison(
        {
            **{run.rank: run.cost for run in alive},
            PATTERN: np.stack([losses[seed].to_numpy() for seed in seeds]),
        },
        {**{run.rank: run.seeds for run in alive}, PATTERN: seeds},
    )
    gain = costs.difference(rank, PATTERN)
    low, high = gain.interval(decision.confidence)
    least, most = min(ranks[0].values()), max(ranks[0].values())
    better = low > 0
    verdict = (
        f"the better cut, in {RANK_PATTERN_DIRECTORY}/" if better else "not shown to be better"
    )
    reason = (
        f"With the same {entries:,} entries shared among the layers by energy (ranks {least} to {most}), the held-out "
        f"loss is lower by {gain.mean:+.4f} [{low:+.4f}, {high:+.4f}]: {verdict}."
    )
    cut = RankPattern(
        ranks=ranks[0],
        entries=entries,
        gain=gain.mean,
        gain_ci=(low, high),
        better=better,
        reason=reason,
    )
    return cut, adapters[0] if better else None
