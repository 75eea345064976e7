"""The fused engine: trials over one frozen base, without padding, each as it would train alone."""

import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache

from rankwise.engine.adapter_init import attaching, saved_modules
from rankwise.engine.batches import longest_rows
from rankwise.engine.config import TrainingConfig
from rankwise.engine.evaluate import BATCH_TOKENS, Results, length_batches
from rankwise.engine.fused.attention import check_attention
from rankwise.engine.fused.checkpointing import keeps_inputs_alone
from rankwise.engine.fused.loop import TrainingLoop
from rankwise.engine.fused.measurement import AloneCosts
from rankwise.engine.fused.model import PackedModel, PackedTrial, packed_model
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.engine.fused.saved_trials import Keeper, restore
from rankwise.engine.fused.threads import run_in_threads
from rankwise.engine.fused.training_state import EvalAdapter, TrainingState
from rankwise.engine.trial import (
    Checkpoints,
    FinishedTrial,
    NoProgress,
    TrainingProgress,
    Trial,
    no_evidence,
    share_of_training,
)
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.models.out_of_memory import OutOfMemory, attempt
from rankwise.models.quantization import mixes_rows
from rankwise.tasks.base import Encoded

Result = TypeVar("Result")


class FusedEngine:
    """Trains packs of trials over one frozen base.

    The trials of a pack share the base and nothing else (README.md in this folder has the picture).
    A trial whose loss or gradient is not finite drops out without effect on the others. On a CPU
    a pack is split into sub-packs, one for each thread; the trials of a sub-pack go through the
    base together.

    Args:
        base: the frozen base; `rankwise.engine.fused.model.unsupported_reason` checks it.
        progress: receives notes, and the work done.
        pack_size: number of trials that train together. With at most one trial to a core, a trial's
            figures are bit-identical in any pack; where trials share a pass, only up to rounding.
        checkpoints: where trials in training are kept every ``config.checkpoint_minutes``, and
            from where they go on.
    """

    def __init__(
        self,
        base: BaseModel,
        train: Encoded,
        held_out: Encoded,
        config: TrainingConfig,
        progress: TrainingProgress | None = None,
        pack_size: int = 1,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.base = base
        self.examples = train
        self.held_out = held_out
        self.config = config
        self.progress = progress or NoProgress()
        self.limits = Limits(pack_size, config.micro_batch_tokens)
        self.train_share = share_of_training(config, train, held_out)
        self.loop = TrainingLoop(base, train, self.limits, self._after_step)
        self._alone = AloneCosts(self.loop)
        minutes, note = config.checkpoint_minutes, self.progress.note
        self._keeper = Keeper(checkpoints, minutes, note, self.limits)
        self._saved = saved_modules(base)
        self._starts: Mapping[str, Adapter] = {}
        self._reported: dict[str, float] = {}
        self.checkpointing = keeps_inputs_alone(base.model, config.gradient_checkpointing)
        self._report_lock = threading.Lock()
        check_attention(config.attention, base.device, base.compute_dtype)

    @property
    def pack_size(self) -> int:
        """Number of trials that train together, fewer once memory did not suffice."""
        return self.limits.pack_size

    def train(
        self, trials: Sequence[Trial], starts: Mapping[str, Adapter] | None = None
    ) -> Generator[FinishedTrial, None, None]:
        """Train the trials pack by pack, in the given order.

        Raises:
            RankwiseError: a single trial with a single example does not fit the device.
        """
        self._starts = starts or {}
        waiting = list(trials)
        while waiting:
            with quiet_libraries():
                finished = self._try_pack(waiting[: self.pack_size])
            yield from finished
            waiting = waiting[len(finished) :]

    def score(
        self, adapters: Sequence[Adapter], examples: Encoded | None = None
    ) -> list[pd.DataFrame]:
        """Score adapters on examples, by default the held-out ones."""
        with attaching(self.base):
            eval_adapters = [EvalAdapter(self.base, adapter) for adapter in adapters]
        with self._packed_model() as model:
            chosen = self.held_out if examples is None else examples
            return self._repeated(partial(self._evaluate, model, eval_adapters, chosen))

    def _packed_model(self) -> AbstractContextManager[PackedModel]:
        return packed_model(
            self.base,
            dropout=self.config.lora_dropout,
            attention=self.config.attention,
            checkpointing=self.checkpointing,
        )

    def _try_pack(self, trials: Sequence[Trial]) -> list[FinishedTrial]:
        """Train a pack; return nothing if it is to be tried again with lower limits."""
        try:
            return self._train_pack(trials)
        except OutOfMemory as error:
            self._lower_limits(error, len(trials))
        # After the except block, because the error's traceback holds the trials' tensors.
        clear_device_cache(garbage_collection=True)
        return []

    def _lower_limits(self, error: OutOfMemory, trials: int) -> None:
        longest, largest = max(self.examples.lengths), self._most_batch_tokens()
        self.progress.note(self.limits.lower(error, trials, longest, largest, self.base.device))

    def _train_pack(self, trials: Sequence[Trial]) -> list[FinishedTrial]:
        states = [attempt(partial(self._training_state, trial), intact=False) for trial in trials]
        with self._packed_model() as model:
            # Both stay the same in a last pack with fewer trials: sums depend on them.
            on_cpu = model.device.type == "cpu"
            count = min(self.pack_size, torch.get_num_threads()) if on_cpu else 1
            cores = torch.get_num_threads() // count
            subpacks = _split_pack(states, count)
            try:
                eval_seconds = self._train_and_score(model, subpacks, cores) / len(trials)
            except OutOfMemory as error:
                if error.intact:
                    self._keeper.set_aside(states)
                raise
            pack_seconds = max(state.seconds for state in states)
            finished = []
            for state in states:
                # It holds a copy of the adapter; the steps below change the state, for measurement.
                result = _finished_trial(state, len(trials), pack_seconds, eval_seconds)
                self._report(state, 1.0)
                work = partial(self._alone.peak_memory, model, state)
                result.peak_memory_bytes = self._repeated(work)
                finished.append(result)
            if len(trials) > 1 or cores < torch.get_num_threads():
                alone = self._repeated(partial(self._alone.seconds, model, states))
                for result, seconds in zip(finished, alone, strict=True):
                    # Alone it has all that the pack shared, so it is not slower than the pack.
                    result.train_seconds = min(seconds, pack_seconds)
        for trial in trials:
            self._keeper.forget(trial.name)
            self._reported.pop(trial.name, None)
        return finished

    def _training_state(self, trial: Trial) -> TrainingState:
        """Return a new trial, or one that goes on from where it was kept."""
        start = self._starts[trial.starts_from] if trial.starts_from else None
        state = TrainingState(trial, self.base, self._saved, self.config, self.examples, start)
        saved = self._keeper.read(trial.name, self.config)
        if saved is not None:
            restore(state, saved)
            self.limits.keep_to(saved.progress.get("micro_batch_tokens"))
            self._report(state, self.train_share * len(state.steps) / state.total_steps)
        return state

    def _train_and_score(
        self, model: PackedModel, subpacks: Sequence[Sequence[TrainingState]], cores: int
    ) -> float:
        """Train and score sub-packs at the same time; return the seconds of scoring."""
        self.base.model.train()  # bitsandbytes' 8-bit layers differ in eval mode on a CPU
        for subpack in subpacks:
            self._keeper.begin(subpack)
        run_in_threads([partial(self.loop.train, model, each) for each in subpacks], cores)
        start = time.perf_counter()
        tasks = [partial(self._score_subpack, model, each) for each in subpacks]
        attempt(partial(run_in_threads, tasks, cores))
        return time.perf_counter() - start

    def _repeated(self, work: Callable[[], Result]) -> Result:
        """Return the result of work that changes nothing, in shorter passes if memory is short."""
        while True:
            try:
                return attempt(work)
            except OutOfMemory as error:
                self._lower_limits(error, trials=1)

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
        count = self._scored_at_once(model, examples)
        if len(trials) > count:
            parts = [trials[start : start + count] for start in range(0, len(trials), count)]
            return [rows for part in parts for rows in self._evaluate(model, part, examples)]
        self.base.model.eval()
        model.begin_step(trials)
        results = [Results(examples) for _ in trials]
        with torch.inference_mode():
            for rows in self._scoring_batches(model, examples, len(trials)):
                part = examples.take(rows)
                for result, measures in zip(results, model.measures(trials, part), strict=True):
                    result.put(rows, measures)
        return [result.frame() for result in results]

    def _scored_at_once(self, model: PackedModel, examples: Encoded) -> int:
        """Return how many trials share a pass: on a GPU those that fit with the longest example."""
        if mixes_rows(self.base.model):
            return 1
        most = self.limits.micro_batch_tokens
        if model.device.type != "cpu":
            most = min(most or BATCH_TOKENS, BATCH_TOKENS)
        return sys.maxsize if most is None else max(1, most // max(examples.lengths, default=1))

    def _scoring_batches(
        self, model: PackedModel, examples: Encoded, trials: int
    ) -> list[list[int]]:
        """Group examples; on a GPU no batch has more tokens than a training pass that fitted."""
        if trials == 0:
            return []
        most = self.limits.micro_batch_tokens
        if most is None and model.device.type != "cpu":
            most = trials * self._most_batch_tokens()
        return length_batches(examples, model.device, trials, most)

    def _most_batch_tokens(self) -> int:
        lengths = self.examples.lengths
        return sum(lengths[row] for row in longest_rows(lengths, self.config.batch_size))

    def _after_step(self, states: Sequence[TrainingState]) -> None:
        for state in states:
            self._report(state, self.train_share * len(state.steps) / state.total_steps)
        self._keeper.after_step(states)

    def _report(self, state: TrainingState, share: float) -> None:
        """Report the share of a trial that is done, if it is more than was reported."""
        name = state.trial.name
        with self._report_lock:
            done = self._reported.get(name, 0.0)
            if share > done:
                self._reported[name] = share
                self.progress.work(share - done)


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
