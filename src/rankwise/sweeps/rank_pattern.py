"""Truncated adapters with a rank for each layer, compared with one rank for all at equal size."""

from collections.abc import Sequence

import numpy as np

from rankwise.decide.decision import RankPattern
from rankwise.decide.findings import Findings
from rankwise.decide.pairwise import Comparison
from rankwise.engine.trial import Engine
from rankwise.lora import ranks_by_budget, read_adapter, spectrum, truncate
from rankwise.lora.adapter import Adapter
from rankwise.store.directory import SweepStore
from rankwise.store.records import TrialRecord

PATTERN = 0  # stands for the rank patterns among the ranks compared


def try_rank_pattern(
    findings: Findings, rank: int, trials: Sequence[TrialRecord], store: SweepStore, engine: Engine
) -> tuple[RankPattern | None, Adapter | None]:
    """Truncate the trained adapters to a rank for each layer, and compare with the recommended one.

    Every seed's adapter gets a rank for each layer from its own singular values
    (`rankwise.lora.ranks_by_budget`), with as many entries as that rank has. The two kinds of
    truncated adapters are compared as two ranks are: over the same seeds and the same examples.

    Args:
        findings: the comparison of all ranks.
        rank: the recommended rank.
        trials: its truncated adapters, best first.
        store: holds the trained adapters.
        engine: scores the adapters truncated here.

    Returns:
        The comparison, still without its sentence, or None if every layer gets that rank;
        and, if the pattern is better, the adapter truncated from the source of the best trial.
    """
    sources = [trial.truncated_from for trial in trials if trial.truncated_from is not None]
    spectra = [spectrum(read_adapter(store.adapter_directory(name))) for name in sources]
    # An adapter saved for the original base (PiSSA, OLoRA) has twice its trial's rank.
    entries = spectra[0].params // spectra[0].largest_rank * rank
    patterns = [ranks_by_budget(one, entries) for one in spectra]
    if all(set(pattern.values()) == {rank} for pattern in patterns):
        return None, None
    adapters = [truncate(one, ranks) for one, ranks in zip(spectra, patterns, strict=True)]
    examples = findings.alive[0].examples
    losses: dict[int, np.ndarray] = {}
    for trial, scored in zip(trials, engine.score(adapters), strict=True):
        losses[trial.seed] = scored.set_index("example_id")["loss"].loc[examples].to_numpy()
    seeds = sorted(losses)
    values = {one.rank: one.cost for one in findings.alive}
    values[PATTERN] = np.stack([losses[seed] for seed in seeds])  # (S, N)
    all_seeds = {**findings.comparison.seeds, PATTERN: seeds}
    comparison = Comparison(values, all_seeds, fixed_seeds=findings.fixed_seeds)
    gain = comparison.difference(rank, PATTERN)
    low, high = gain.interval(findings.rule.confidence)
    pattern = RankPattern(
        ranks=patterns[0], entries=entries, gain=gain.mean, gain_ci=(low, high), better=low > 0
    )
    return pattern, adapters[0] if pattern.better else None
