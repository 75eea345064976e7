"""The engine that a sweep trains with, and one around it that truncates trained adapters."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import unsupported_reason
from rankwise.engine.trial import Engine, FinishedTrial, Trial
from rankwise.lora.adapter import Adapter
from rankwise.lora.files import read_adapter
from rankwise.lora.spectra import Spectrum, spectrum
from rankwise.lora.truncation import truncate
from rankwise.sweeps.user_trainer import trainer_engine

if TYPE_CHECKING:
    from rankwise.sweeps.run_context import Run


def choose_engine(run: "Run") -> Engine:
    """Return the engine that the request names.

    The reference engine replaces a fused engine that cannot train the base model; a note says so.
    """
    config, progress = run.in_force, run.progress
    if config.trainer is not None:
        return trainer_engine(run)
    train, held_out = run.encode("train"), run.encode("held_out")
    obstacle = unsupported_reason(run.loaded_base, train) if config.engine == "fused" else None
    if config.engine == "reference" or obstacle is not None:
        if obstacle is not None:
            progress.note(f"the reference engine trains instead of the fused one: {obstacle}")
        from rankwise.engine.reference import ReferenceEngine  # imports the Trainer

        return ReferenceEngine(run.loaded_base, train, held_out, config, progress.work)
    if run.fit.at_once > 1:
        progress.note(f"up to {run.fit.at_once} trials train at once")
    at_once, checkpoints = run.fit.at_once, run.store.checkpoints
    return FusedEngine(run.loaded_base, train, held_out, config, progress, at_once, checkpoints)


class TruncatingEngine:
    """An engine that truncates adapters itself and leaves training and scoring to another engine.

    The delta-W of a truncated adapter is the best approximation of its rank to the trained one
    (`truncate`); its head is the trained adapter's. Its trial has no training time.

    Args:
        engine: trains adapters, and scores truncated ones.
        adapter_directory: returns the directory of the adapter of the trial with a given name.
    """

    def __init__(self, engine: Engine, adapter_directory: Callable[[str], Path]) -> None:
        self.engine = engine
        self.score = engine.score
        self.adapter_directory = adapter_directory
        self._decomposed: tuple[Path, Spectrum] | None = None  # the last adapter truncated

    @property
    def pack_size(self) -> int:
        """Number of trials that train at once."""
        return self.engine.pack_size

    @property
    def limits(self) -> Mapping[str, int | None]:
        """What memory allows the fused engine by now, as ``sweep.json`` holds it under ``chosen``.

        It is empty for other engines, which lower nothing.
        """
        return asdict(self.engine.limits) if isinstance(self.engine, FusedEngine) else {}

    def train(
        self, trials: Sequence[Trial], starts: Mapping[str, Adapter] | None = None
    ) -> Generator[FinishedTrial, None, None]:
        """Train or truncate every trial, and yield each when it is finished.

        The adapters that trials start from are read here.
        """
        to_train = [trial for trial in trials if trial.truncated_from is None]
        read = dict(starts or {})
        for trial in to_train:
            if trial.starts_from is not None:
                read[trial.starts_from] = read_adapter(self.adapter_directory(trial.starts_from))
        yield from self.engine.train(to_train, read)
        for source, truncations in groupby(trials, key=lambda trial: trial.truncated_from):
            if source is not None:
                yield from self._truncate(self.adapter_directory(source), list(truncations))

    def _truncate(self, source: Path, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Decompose a trained adapter once, and score its truncations together."""
        start = time.perf_counter()
        if self._decomposed is None or self._decomposed[0] != source:
            self._decomposed = source, spectrum(read_adapter(source))
        trained = self._decomposed[1]
        adapters = [truncate(trained, trial.rank) for trial in trials]
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
