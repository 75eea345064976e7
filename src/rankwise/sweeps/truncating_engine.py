"""An engine that also cuts: adapters of lower rank out of trained ones, without training."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rankwise.engine.trial import Engine, FinishedTrial, Trial
from rankwise.lora.files import read_adapter
from rankwise.lora.spectra import spectrum
from rankwise.lora.truncation import truncate


class TruncatingEngine:
    """Leaves training and scoring to another engine, and makes the cuts itself.

    A cut's delta-W is the best approximation of its rank to the trained one (`truncate`); its head
    is the trained adapter's. What it took to train is in the trial that it is cut from; its own is nought.

    Args:
        engine: trains, and scores the cuts.
        adapter_directory: where a complete trial's adapter lies, by the trial's name.
    """

    def __init__(self, engine: Engine, adapter_directory: Callable[[str], Path]) -> None:
        self.engine = engine
        self.pack_size = engine.pack_size
        self.score = engine.score
        self.adapter_directory = adapter_directory

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Train what is to be trained; decompose each adapter to be cut once, and score all its cuts together."""
        yield from self.engine.train([trial for trial in trials if trial.truncated_from is None])
        for source, cuts in groupby(trials, key=lambda trial: trial.truncated_from):
            if source is not None:
                yield from self._cut(self.adapter_directory(source), list(cuts))

    def _cut(self, source: Path, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        start = time.perf_counter()
        found = spectrum(read_adapter(source))
        adapters = [truncate(found, trial.rank) for trial in trials]
        evidence = self.score(adapters)
        seconds = (time.perf_counter() - start) / len(trials)
        for trial, adapter, rows in zip(trials, adapters, evidence, strict=True):
            yield FinishedTrial(
                trial=trial,
                diverged=False,
                trainable_params=sum(value.numel() for value in adapter.tensors.values()),
                train_seconds=0.0,
                pack_seconds=0.0,
                pack_size=1,
                eval_seconds=seconds,
                peak_memory_bytes=0,
                adapter_config=dict(adapter.config),
                adapter=dict(adapter.tensors),
                evidence=rows,
            )
