"""The fused engine: trials over one frozen base, without padding, each as it would train alone."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import pandas as pd
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.evaluate import Results, length_batches
from rankwise.engine.fused.attention import check_attention
from rankwise.engine.fused.checkpointing import keeps_inputs_alone
from rankwise.engine.fused.loop import TrainingLoop
from rankwise.engine.fused.measurement import AloneCosts
from rankwise.engine.fused.model import PackedModel, PackedTrial, packed_model
from rankwise.engine.fused.threads import run_in_threads
from rankwise.engine.fused.training_state import EvalAdapter, TrainingState
from rankwise.engine.trial import FinishedTrial, Trial, no_evidence, share_of_training
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.models.quantization import mixes_rows
from rankwise.tasks.base import Encoded


class FusedEngine:
    """Trains packs of trials over one frozen base.

    The trials of a pack share the base and nothing else (README.md in this folder has the picture).
    A trial whose loss or gradient is not finite drops out without effect on the others. Adapters
    keep their ranks; none is padded to the largest. On a CPU a pack is split into sub-packs, one
    for each thread; the trials of a sub-pack go through the base together.

    Args:
        base: the frozen base; `rankwise.engine.fused.model.unsupported_reason` checks it.
        on_work: called with each finished share of a trial; the shares of a trial add up to 1.
        pack_size: number of trials that train together. With at most one trial to a core, a trial's
            figures are bit-identical in any pack; where trials share a pass, only up to rounding.
    """

    def __init__(
        self,
        base: BaseModel,
        train: Encoded,
        held_out: Encoded,
        config: TrainingConfig,
        on_work: Callable[[float], None] = lambda share: None,
        pack_size: int = 1,
    ) -> None:
        self.base = base
        self.examples = train
        self.held_out = held_out
        self.config = config
        self.on_work = on_work
        self.pack_size = pack_size
        self.train_share = share_of_training(config, train, held_out)
        self.loop = TrainingLoop(base, train, self._report_step)
        self._alone = AloneCosts(self.loop)
        self._saved = saved_modules(base)
        self.checkpointing = keeps_inputs_alone(base.model, config.gradient_checkpointing)
        self._report_lock = threading.Lock()
        check_attention(config.attention, base.device, base.compute_dtype)

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Train the trials pack by pack, in the given order."""
        for start in range(0, len(trials), self.pack_size):
            with quiet_libraries():
                finished = self._train_pack(trials[start : start + self.pack_size])
            yield from finished

    def score(
        self, adapters: Sequence[Adapter], examples: Encoded | None = None
    ) -> list[pd.DataFrame]:
        """Score adapters on examples, by default the held-out ones."""
        eval_adapters = [EvalAdapter(self.base, adapter) for adapter in adapters]
        with self._packed_model() as model:
            chosen = self.held_out if examples is None else examples
            return self._evaluate(model, eval_adapters, chosen)

    def _packed_model(self) -> AbstractContextManager[PackedModel]:
        return packed_model(
            self.base,
            dropout=self.config.lora_dropout,
            attention=self.config.attention,
            checkpointing=self.checkpointing,
        )

    def _train_pack(self, trials: Sequence[Trial]) -> list[FinishedTrial]:
        states = [
            TrainingState(trial, self.base, self._saved, self.config, self.examples)
            for trial in trials
        ]
        with self._packed_model() as model:
            # Both stay the same in a last pack with fewer trials: sums depend on them.
            on_cpu = model.device.type == "cpu"
            count = min(self.pack_size, torch.get_num_threads()) if on_cpu else 1
            cores = torch.get_num_threads() // count
            subpacks = _split_pack(states, count)
            self.base.model.train()  # bitsandbytes' 8-bit layers differ in eval mode on a CPU
            start = time.perf_counter()
            run_in_threads([partial(self.loop.train, model, each) for each in subpacks], cores)
            pack_seconds = time.perf_counter() - start
            start = time.perf_counter()
            run_in_threads([partial(self._score_subpack, model, each) for each in subpacks], cores)
            eval_seconds = (time.perf_counter() - start) / len(trials)
            finished = []
            for state in states:
                # It holds a copy of the adapter; the steps below change the state, for measurement.
                result = _finished_trial(state, len(trials), pack_seconds, eval_seconds)
                self._report_work(1.0 - self.train_share * len(state.steps) / state.total_steps)
                result.peak_memory_bytes = self._alone.peak_memory(model, state)
                finished.append(result)
            if len(trials) > 1 or cores < torch.get_num_threads():
                alone = self._alone.seconds(model, states)
                for result, seconds in zip(finished, alone, strict=True):
                    result.train_seconds = seconds
            return finished

    def _score_subpack(
        self, model: PackedModel, states: Sequence[TrainingState], _: threading.Event
    ) -> None:
        """Score the trials that have not diverged."""
        alive = [state for state in states if not state.diverged]
        scored = self._evaluate(model, alive, self.held_out)
        for state, evidence in zip(alive, scored, strict=True):
            state.evidence = evidence

    def _evaluate(
        self, model: PackedModel, trials: Sequence[PackedTrial], examples: Encoded
    ) -> list[pd.DataFrame]:
        """Score every example with every trial, in shared passes where rows permit it."""
        if mixes_rows(self.base.model) and len(trials) > 1:
            return [rows for trial in trials for rows in self._evaluate(model, [trial], examples)]
        self.base.model.eval()
        model.begin_step(trials)
        results = [Results(examples) for _ in trials]
        with torch.inference_mode():
            for rows in length_batches(examples, model.device, len(trials)) if trials else ():
                part = examples.take(rows)
                for result, measures in zip(results, model.measures(trials, part), strict=True):
                    result.put(rows, measures)
        return [result.frame() for result in results]

    def _report_step(self, state: TrainingState) -> None:
        self._report_work(self.train_share / state.total_steps)

    def _report_work(self, share: float) -> None:
        with self._report_lock:
            self.on_work(share)


def _split_pack(states: Sequence[TrainingState], count: int) -> list[list[TrainingState]]:
    """Deal trials to sub-packs 0, 1, 1, 0, 0, 1, ..., lowest rank first: about equal work."""
    subpacks: list[list[TrainingState]] = [[] for _ in range(count)]
    for place, state in enumerate(sorted(states, key=lambda state: state.trial.rank)):
        turn, index = divmod(place, count)
        subpacks[index if turn % 2 == 0 else count - 1 - index].append(state)
    return [subpack for subpack in subpacks if subpack]


def _finished_trial(
    state: TrainingState, pack_size: int, pack_seconds: float, eval_seconds: float
) -> FinishedTrial:
    """Return a trial's results; its memory is not measured yet."""
    diverged = state.diverged or not bool(np.isfinite(state.evidence["loss"]).all())
    adapter = state.adapter()
    return FinishedTrial(
        trial=state.trial,
        diverged=diverged,
        trainable_params=sum(value.numel() for value in adapter.values()),
        train_seconds=pack_seconds,
        pack_seconds=pack_seconds,
        pack_size=pack_size,
        eval_seconds=eval_seconds,
        peak_memory_bytes=0,
        adapter_config=state.adapter_config,
        adapter=adapter,
        evidence=no_evidence() if diverged else state.evidence,
        steps=list(state.steps),
    )
