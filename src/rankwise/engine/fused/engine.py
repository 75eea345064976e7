"""The fused engine: trials over one frozen base, without padding, each as it would train alone."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.batches import longest_rows
from rankwise.engine.config import TrainingConfig
from rankwise.engine.evaluate import Results, length_batches
from rankwise.engine.fused.model import PackedModel, PackedTrial, packed_model
from rankwise.engine.fused.threads import run_in_threads
from rankwise.engine.fused.training_state import EvalAdapter, TrainingState
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.engine.trial import FinishedTrial, Trial, no_evidence, share_of_training
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.models.quantization import has_fast_bf16, mixes_rows, resident_tensors
from rankwise.tasks.base import Encoded

TIMING_STEPS = 9  # thrown-away steps of each trial after its training, to time it alone


def lower_precision(base: BaseModel) -> torch.dtype | None:
    """Return the lower precision in which a base's device multiplies fast; None to stay in fp32."""
    on_cuda = next(base.model.parameters()).device.type == "cuda"
    return torch.bfloat16 if on_cuda and has_fast_bf16() else None


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
        autocast: lower precision for the base's products, such as ``torch.bfloat16`` on a GPU.
    """

    def __init__(
        self,
        base: BaseModel,
        train: Encoded,
        held_out: Encoded,
        config: TrainingConfig,
        on_work: Callable[[float], None] = lambda share: None,
        pack_size: int = 1,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.base = base
        self.examples = train
        self.held_out = held_out
        self.config = config
        self.on_work = on_work
        self.pack_size = pack_size
        self.autocast = autocast
        self.train_share = share_of_training(config, train, held_out)
        self._rows_interact = mixes_rows(base.model)
        device = next(base.model.parameters()).device
        self._pass_tokens = 0 if self._rows_interact else max_pass_tokens(device)
        self._saved = saved_modules(base)
        self._report_lock = threading.Lock()

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Train the trials pack by pack, in the given order."""
        for start in range(0, len(trials), self.pack_size):
            with quiet_libraries():
                finished = self._train_pack(trials[start : start + self.pack_size])
            yield from finished

    def score(self, adapters: Sequence[Adapter]) -> list[pd.DataFrame]:
        """Score adapters on the held-out examples."""
        eval_adapters = [EvalAdapter(self.base, adapter) for adapter in adapters]
        with packed_model(self.base, self.autocast) as model:
            return self._evaluate(model, eval_adapters)

    def _train_pack(self, trials: Sequence[Trial]) -> list[FinishedTrial]:
        states = [
            TrainingState(trial, self.base, self._saved, self.config, self.examples)
            for trial in trials
        ]
        with packed_model(self.base, self.autocast) as model:
            # Both stay the same in a last pack with fewer trials: sums depend on them.
            on_cpu = model.device.type == "cpu"
            count = min(self.pack_size, torch.get_num_threads()) if on_cpu else 1
            cores = torch.get_num_threads() // count
            subpacks = _split_pack(states, count)
            self.base.model.train()  # bitsandbytes' 8-bit layers differ in eval mode on a CPU
            start = time.perf_counter()
            run_in_threads([partial(self._train_subpack, model, each) for each in subpacks], cores)
            pack_seconds = time.perf_counter() - start
            start = time.perf_counter()
            run_in_threads([partial(self._score_subpack, model, each) for each in subpacks], cores)
            eval_seconds = (time.perf_counter() - start) / len(trials)
            finished = []
            for state in states:
                # It holds a copy of the adapter; the steps below change the state, for measurement.
                result = _finished_trial(state, len(trials), pack_seconds, eval_seconds)
                self._report_work(1.0 - self.train_share * len(state.steps) / state.total_steps)
                result.peak_memory_bytes = self._peak_memory(model, state)
                finished.append(result)
            if len(trials) > 1 or cores < torch.get_num_threads():
                seconds_alone = self._seconds_alone(model, states)
                for result, seconds in zip(finished, seconds_alone, strict=True):
                    result.train_seconds = seconds
            return finished

    def _train_subpack(
        self, model: PackedModel, states: Sequence[TrainingState], stop: threading.Event
    ) -> None:
        """Train trials step by step, in as few passes a step as the tokens allow."""
        while not stop.is_set():
            active = [state for state in states if not state.finished]
            if not active:
                break
            batches = [state.next_batch() for state in active]
            tokens = [sum(self.examples.lengths[row] for row in batch) for batch in batches]
            for part in _passes(tokens, self._pass_tokens):
                losses = self.forward_backward(model, active[part], batches[part])
                for state, loss in zip(active[part], losses, strict=True):
                    state.update(loss)
                    self._report_work(self.train_share / state.total_steps)
        _synchronize(model.device)

    def forward_backward(
        self, model: PackedModel, states: Sequence[TrainingState], batches: Sequence[Sequence[int]]
    ) -> list[float]:
        """Run K trials on their batches in one pass, add to their gradients, return mean losses."""
        objective = self.base.objective
        parts = [self.examples.take(batch) for batch in batches]
        targets = [objective.targets(part).to(model.device) for part in parts]
        logits = model.logits(states, parts)  # K of (m_k, outputs)
        losses = [objective.loss(*pair) for pair in zip(logits, targets, strict=True)]
        torch.autograd.backward(losses)
        return torch.stack(losses).tolist()

    def _score_subpack(
        self, model: PackedModel, states: Sequence[TrainingState], _: threading.Event
    ) -> None:
        """Score the trials that have not diverged."""
        alive = [state for state in states if not state.diverged]
        for state, evidence in zip(alive, self._evaluate(model, alive), strict=True):
            state.evidence = evidence

    def _evaluate(self, model: PackedModel, trials: Sequence[PackedTrial]) -> list[pd.DataFrame]:
        """Score every held-out example with every trial, in shared passes where rows permit it."""
        if self._rows_interact and len(trials) > 1:
            return [rows for trial in trials for rows in self._evaluate(model, [trial])]
        examples = self.held_out
        self.base.model.eval()
        results = [Results(examples) for _ in trials]
        with torch.inference_mode():
            for rows in length_batches(examples, model.device, len(trials)) if trials else ():
                part = examples.take(rows)
                logits = model.logits(trials, [part] * len(trials))  # K of (m, outputs)
                for result, trial_logits in zip(results, logits, strict=True):
                    result.put(rows, self.base.objective.measure(trial_logits, part))
        return [result.frame() for result in results]

    def _peak_memory(self, model: PackedModel, state: TrainingState) -> int:
        """Measure a thrown-away step on the longest examples, in bytes."""
        longest = longest_rows(self.examples.lengths, self.config.batch_size)
        self.base.model.train()

        def step() -> None:
            self.forward_backward(model, [state], [longest])
            state.optimizer.step()

        return peak_live_bytes(step, [*resident_tensors(self.base.model), *state.tensors()])

    def _seconds_alone(self, model: PackedModel, states: Sequence[TrainingState]) -> list[float]:
        """Return the seconds that each trial would take alone, on all cores.

        The trials take turns at thrown-away steps spread over their training. The median time for a
        token ignores a delayed step.
        """
        shares = [len(state.steps) / state.total_steps for state in states]
        seconds_per_token: list[list[float]] = [[] for _ in states]
        for turn in range(TIMING_STEPS):
            for state, seconds in zip(states, seconds_per_token, strict=True):
                batch = state.batch(state.total_steps * turn // TIMING_STEPS)
                start = time.perf_counter()
                (loss,) = self.forward_backward(model, [state], [batch])
                state.update(loss)
                _synchronize(model.device)
                tokens = sum(self.examples.lengths[row] for row in batch)
                seconds.append((time.perf_counter() - start) / tokens)
        tokens = self.config.epochs * sum(self.examples.lengths)
        medians = map(statistics.median, seconds_per_token)
        return [share * tokens * each for share, each in zip(shares, medians, strict=True)]

    def _report_work(self, share: float) -> None:
        with self._report_lock:
            self.on_work(share)


def max_pass_tokens(device: torch.device) -> int:
    """Return the most tokens of several trials that go through the base in one pass."""
    # A long pass leaves a CPU's caches (see benchmarks/README.md); others are faster with more.
    return 1024 if device.type == "cpu" else 16384


def _split_pack(states: Sequence[TrainingState], count: int) -> list[list[TrainingState]]:
    """Deal trials to sub-packs 0, 1, 1, 0, 0, 1, ..., lowest rank first: about equal work."""
    subpacks: list[list[TrainingState]] = [[] for _ in range(count)]
    for place, state in enumerate(sorted(states, key=lambda state: state.trial.rank)):
        turn, index = divmod(place, count)
        subpacks[index if turn % 2 == 0 else count - 1 - index].append(state)
    return [subpack for subpack in subpacks if subpack]


def _passes(tokens: Sequence[int], most: int) -> Iterator[slice]:
    """Split trials into passes of neighbours with at most this many tokens, or of one trial."""
    start = 0
    for stop in range(1, len(tokens) + 1):
        if stop == len(tokens) or sum(tokens[start : stop + 1]) > most:
            yield slice(start, stop)
            start = stop


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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
