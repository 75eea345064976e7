"""The fused engine: trials over one frozen base, without padding, each exactly as it would train alone."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from rankwise.engine.base_model import BaseModel
from rankwise.engine.evaluate import Results, length_batches
from rankwise.engine.fresh import saved_modules
from rankwise.engine.measure import peak_live_bytes
from rankwise.engine.packed_model import PackedModel, packed_model
from rankwise.engine.trainee import Trainee
from rankwise.engine.trial import FinishedTrial, Recipe, Trial, no_evidence, share_of_training
from rankwise.lora.libraries import quiet_libraries
from rankwise.tasks.base import Encoded

SOLO_STEPS = 3  # of a pack's steps, taken trial by trial to see what each would take alone


def lower_precision(base: BaseModel) -> torch.dtype | None:
    """Return the precision for a base's products where its device has a fast lower one; None for fp32."""
    device = next(base.model.parameters()).device
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


class FusedEngine:
    """Trains packs of trials.

    A pack's trials share the frozen base and nothing else: each has its own adapter, head, order, clipping, optimizer
    and schedule, and a trial whose loss or gradient is not finite drops out without the others noticing. Adapters keep
    their own ranks: nothing is padded to the largest.

    Args:
        base: the frozen base; `rankwise.engine.packed_model.why_not` tells whether it will do.
        train: examples to learn from.
        held_out: examples to judge by.
        recipe: what all trials share.
        on_work: told of each finished share of a trial; the shares of one trial add up to 1.
        pack_size: trials that train together. The fewer tokens a batch has, the more is gained by passes of several
            trials; alone, a trial's figures are the same to the last bit whatever else the sweep runs.
        autocast: lower precision for the base's products, such as ``torch.bfloat16`` on a GPU.
    """

    def __init__(
        self,
        base: BaseModel,
        train: Encoded,
        held_out: Encoded,
        recipe: Recipe,
        on_work: Callable[[float], None] = lambda share: None,
        pack_size: int = 1,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.base = base
        self.examples = train
        self.held_out = held_out
        self.recipe = recipe
        self.on_work = on_work
        self.pack_size = pack_size
        self.autocast = autocast
        self.train_share = share_of_training(recipe, train, held_out)
        self._saved = saved_modules(base)

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Train the trials pack by pack, in the order given."""
        for start in range(0, len(trials), self.pack_size):
            with quiet_libraries():
                finished = self._train_pack(trials[start : start + self.pack_size])
            yield from finished

    def _train_pack(self, trials: Sequence[Trial]) -> list[FinishedTrial]:
        trainees = [Trainee(trial, self.base, self._saved, self.recipe, self.examples) for trial in trials]
        with packed_model(self.base, self.autocast) as model:
            clock = _Clock(model.device)
            steps = trainees[0].total_steps
            solo_steps = {steps * part // (SOLO_STEPS + 1) for part in range(1, SOLO_STEPS + 1)}
            for step in range(steps):
                active = [trainee for trainee in trainees if not trainee.diverged]
                batches = [trainee.next_batch() for trainee in active]
                tokens = [sum(self.examples.lengths[row] for row in batch) for batch in batches]
                for part in _passes(tokens, 0 if step in solo_steps else pass_tokens(model.device)):
                    group = active[part]
                    with clock.running(group, tokens[part]):
                        for trainee, loss in zip(group, self._gradients(model, group, batches[part]), strict=True):
                            trainee.update(loss)
                    for _ in group:
                        self.on_work(self.train_share / steps)
            start = time.perf_counter()
            evidence = self._evaluate(model, [trainee for trainee in trainees if not trainee.diverged])
            eval_seconds = (time.perf_counter() - start) / len(trials)
            finished = []
            for trainee in trainees:
                rows = evidence.get(trainee)
                diverged = rows is None or not bool(np.isfinite(rows["loss"]).all())
                adapter = trainee.adapter()  # before one more step is taken to measure memory
                finished.append(
                    FinishedTrial(
                        trial=trainee.trial,
                        diverged=diverged,
                        trainable_params=sum(value.numel() for value in adapter.values()),
                        train_seconds=clock.alone(trainee),
                        pack_seconds=clock.seconds,
                        pack_size=len(trials),
                        eval_seconds=eval_seconds,
                        peak_memory_bytes=self._peak_memory(model, trainee),
                        adapter_config=trainee.adapter_config,
                        adapter=adapter,
                        evidence=no_evidence() if rows is None or diverged else rows,
                        steps=trainee.steps,
                    )
                )
                self.on_work(1.0 - self.train_share * len(trainee.steps) / steps)
            return finished

    def _gradients(
        self, model: PackedModel, trainees: Sequence[Trainee], batches: Sequence[Sequence[int]]
    ) -> list[float]:
        """Run forward and backward, each trial on its own batch; return each trial's mean loss."""
        objective = self.base.objective
        parts = [self.examples.take(batch) for batch in batches]
        targets = [objective.targets(part).to(model.device) for part in parts]
        logits = model.logits(trainees, parts)  # K of (m_k, outputs)
        losses = [objective.loss(*pair) for pair in zip(logits, targets, strict=True)]
        torch.autograd.backward(losses)
        return torch.stack(losses).tolist()

    def _evaluate(self, model: PackedModel, trainees: Sequence[Trainee]) -> dict[Trainee, pd.DataFrame]:
        """Score every held-out example with every trial, one pass for all of them."""
        examples = self.held_out
        results = {trainee: Results(examples) for trainee in trainees}
        with torch.inference_mode():
            for rows in length_batches(examples, model.device, len(trainees)) if trainees else ():
                part = examples.take(rows)
                logits = model.logits(trainees, [part] * len(trainees))  # K of (m, outputs)
                for trainee, own in zip(trainees, logits, strict=True):
                    results[trainee].put(rows, self.base.objective.measure(own, part))
        return {trainee: result.frame() for trainee, result in results.items()}

    def _peak_memory(self, model: PackedModel, trainee: Trainee) -> int:
        """Measure one more step on the longest examples; its result is thrown away with the trial."""
        by_length = sorted(range(len(self.examples)), key=self.examples.lengths.__getitem__)
        longest = by_length[-self.recipe.batch_size :]

        def step() -> None:
            self._gradients(model, [trainee], [longest])
            trainee.optimizer.step()

        base = self.base.model
        return peak_live_bytes(step, [*base.parameters(), *base.buffers(), *trainee.tensors()])


def pass_tokens(device: torch.device) -> int:
    """Return how many tokens of several trials go through the base in one pass.

    On a CPU a pass is the slower for each token the less of it stays in the caches: benchmarks/README.md has the
    measurement. Another device wants as many as it can get.
    """
    return 1024 if device.type == "cpu" else 16384


def _passes(tokens: Sequence[int], most: int) -> Iterator[slice]:
    """Cut a pack into passes of neighbours with at most so many tokens, or of one trial."""
    start = 0
    for stop in range(1, len(tokens) + 1):
        if stop == len(tokens) or sum(tokens[start : stop + 1]) > most:
            yield slice(start, stop)
            start = stop


class _Clock:
    """How long a pack trains, and how long each of its trials would train alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self._alone: dict[Trainee, list[float]] = defaultdict(lambda: [0.0, 0.0])  # seconds and tokens of solo passes
        self._together: dict[Trainee, list[float]] = defaultdict(lambda: [0.0, 0.0])  # of shared ones, by tokens

    @contextmanager
    def running(self, group: Sequence[Trainee], tokens: Sequence[int]) -> Iterator[None]:
        """Time a pass of a group, each with so many tokens."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        books = self._alone if len(group) == 1 else self._together
        for trainee, own in zip(group, tokens, strict=True):
            book = books[trainee]
            book[0] += seconds * own / sum(tokens)
            book[1] += own

    def alone(self, trainee: Trainee) -> float:
        """Return the seconds of all the trial's steps at the pace of its solo steps.

        A trial that diverged before its first solo step is given its share of the pack's time.
        """
        (seconds, tokens), (shared_seconds, shared_tokens) = self._alone[trainee], self._together[trainee]
        return seconds + (seconds / tokens * shared_tokens if tokens else shared_seconds)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
