"""The fused engine: trials over one frozen base, without padding, each exactly as it would train alone."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.evaluate import Results, length_batches
from rankwise.engine.fused.loaded import Loaded
from rankwise.engine.fused.model import Adapted, PackedModel, packed_model
from rankwise.engine.fused.threads import side_by_side
from rankwise.engine.fused.training_state import Trainee
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.engine.trial import FinishedTrial, Trial, no_evidence, share_of_training
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.models.quantization import has_fast_bf16, mixes_rows, resident_tensors
from rankwise.tasks.base import Encoded

SOLO_STEPS = 9  # after a pack's training, trial by trial, to see what each would take alone


def lower_precision(base: BaseModel) -> torch.dtype | None:
    """Return the precision for a base's products where its device has a fast lower one; None for fp32."""
    on_cuda = next(base.model.parameters()).device.type == "cuda"
    return torch.bfloat16 if on_cuda and has_fast_bf16() else None


class FusedEngine:
    """Trains packs of trials.

    A pack's trials share the frozen base and nothing else: each has its own adapter, head, order, clipping, optimizer
    and schedule, and a trial whose loss or gradient is not finite drops out without the others noticing. Adapters keep
    their own ranks: nothing is padded to the largest.

    On a CPU a pack's trials are dealt out to as many threads as there are trials or cores, each with its share of the
    cores; those of one thread, and all on another device, go through the base together.

    Args:
        base: the frozen base; `rankwise.engine.fused.model.why_not` tells whether it will do.
        train: examples to learn from.
        held_out: examples to judge by.
        recipe: what all trials share.
        on_work: told of each finished share of a trial; the shares of one trial add up to 1.
        pack_size: trials that train together. With no more of them than cores, a trial's figures are the same to the
            last bit whatever else the sweep runs; where several go through the base in one pass, to rounding.
        autocast: lower precision for the base's products, such as ``torch.bfloat16`` on a GPU.
    """

    def __init__(
        self,
        base: BaseModel,
        train: Encoded,
        held_out: Encoded,
        recipe: TrainingConfig,
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
        self._one_by_one = mixes_rows(base.model)
        self._pass_tokens = (
            0 if self._one_by_one else pass_tokens(next(base.model.parameters()).device)
        )
        self._saved = saved_modules(base)
        self._telling = threading.Lock()

    def train(self, trials: Sequence[Trial]) -> Iterator[FinishedTrial]:
        """Train the trials pack by pack, in the order given."""
        for start in range(0, len(trials), self.pack_size):
            with quiet_libraries():
                finished = self._train_pack(trials[start : start + self.pack_size])
            yield from finished

    def score(self, adapters: Sequence[Adapter]) -> list[pd.DataFrame]:
        """Score adapters on the held-out examples."""
        loaded = [Loaded(self.base, adapter) for adapter in adapters]
        with packed_model(self.base, self.autocast) as model:
            return self._evaluate(model, loaded)

    def _train_pack(self, trials: Sequence[Trial]) -> list[FinishedTrial]:
        trainees = [
            Trainee(trial, self.base, self._saved, self.recipe, self.examples) for trial in trials
        ]
        with packed_model(self.base, self.autocast) as model:
            count = (
                min(self.pack_size, torch.get_num_threads()) if model.device.type == "cpu" else 1
            )
            teams = _deal(trainees, count)
            threads = (
                torch.get_num_threads() // count
            )  # the same however many trials are left: see `side_by_side`
            self.base.model.train()  # bitsandbytes' 8-bit layers on a CPU compute otherwise in eval mode
            start = time.perf_counter()
            side_by_side([partial(self._train_team, model, team) for team in teams], threads)
            pack_seconds, start = time.perf_counter() - start, time.perf_counter()
            evidence = {}
            for scored in side_by_side(
                [partial(self._evaluate_team, model, team) for team in teams], threads
            ):
                evidence.update(scored)
            eval_seconds = (time.perf_counter() - start) / len(trials)
            finished = []
            for trainee in trainees:
                rows = evidence.get(trainee)
                diverged = rows is None or not bool(np.isfinite(rows["loss"]).all())
                adapter = trainee.adapter()
                finished.append(
                    FinishedTrial(
                        trial=trainee.trial,
                        diverged=diverged,
                        trainable_params=sum(value.numel() for value in adapter.values()),
                        train_seconds=pack_seconds,
                        pack_seconds=pack_seconds,
                        pack_size=len(trials),
                        eval_seconds=eval_seconds,
                        peak_memory_bytes=0,
                        adapter_config=trainee.adapter_config,
                        adapter=adapter,
                        evidence=no_evidence() if rows is None or diverged else rows,
                        steps=list(trainee.steps),
                    )
                )
                self._tell(1.0 - self.train_share * len(trainee.steps) / trainee.total_steps)
            # From here on the adapters are saved, and whatever else the trainees learn is thrown away.
            for one, trainee in zip(finished, trainees, strict=True):
                one.peak_memory_bytes = self._peak_memory(model, trainee)
            if len(trials) > 1 or threads < torch.get_num_threads():
                for one, seconds in zip(
                    finished, self._seconds_alone(model, trainees), strict=True
                ):
                    one.train_seconds = seconds
            return finished

    def _train_team(
        self, model: PackedModel, trainees: Sequence[Trainee], stop: threading.Event
    ) -> None:
        """Train trials in step with each other, those with few tokens in one pass."""
        while not stop.is_set() and (
            active := [trainee for trainee in trainees if not trainee.finished]
        ):
            batches = [trainee.next_batch() for trainee in active]
            tokens = [sum(self.examples.lengths[row] for row in batch) for batch in batches]
            for part in _passes(tokens, self._pass_tokens):
                group = active[part]
                for trainee, loss in zip(
                    group, self._gradients(model, group, batches[part]), strict=True
                ):
                    trainee.update(loss)
                    self._tell(self.train_share / trainee.total_steps)
        _wait(model.device)

    def _evaluate_team(
        self, model: PackedModel, trainees: Sequence[Trainee], _: threading.Event
    ) -> dict[Trainee, pd.DataFrame]:
        alive = [trainee for trainee in trainees if not trainee.diverged]
        return dict(zip(alive, self._evaluate(model, alive), strict=True))

    def _tell(self, share: float) -> None:
        with self._telling:
            self.on_work(share)

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

    def _evaluate(self, model: PackedModel, trials: Sequence[Adapted]) -> list[pd.DataFrame]:
        """Score every held-out example with every trial, one pass for all of them where they leave each other alone."""
        if self._one_by_one and len(trials) > 1:
            return [rows for trial in trials for rows in self._evaluate(model, [trial])]
        examples = self.held_out
        self.base.model.eval()
        results = [Results(examples) for _ in trials]
        with torch.inference_mode():
            for rows in length_batches(examples, model.device, len(trials)) if trials else ():
                part = examples.take(rows)
                logits = model.logits(trials, [part] * len(trials))  # K of (m, outputs)
                for result, own in zip(results, logits, strict=True):
                    result.put(rows, self.base.objective.measure(own, part))
        return [result.frame() for result in results]

    def _peak_memory(self, model: PackedModel, trainee: Trainee) -> int:
        """Measure one more step on the longest examples; its result is thrown away with the trial."""
        by_length = sorted(range(len(self.examples)), key=self.examples.lengths.__getitem__)
        longest = by_length[-self.recipe.batch_size :]

        self.base.model.train()

        def step() -> None:
            self._gradients(model, [trainee], [longest])
            trainee.optimizer.step()

        return peak_live_bytes(step, [*resident_tensors(self.base.model), *trainee.tensors()])

    def _seconds_alone(self, model: PackedModel, trainees: Sequence[Trainee]) -> list[float]:
        """Return what each trial's steps would take alone, on all cores, from a few more steps, the trials in turns.

        A step's time for a token is taken at its median: one step that something else delays would move a mean.
        """
        spent: list[list[float]] = [[] for _ in trainees]  # seconds for a token, step by step
        shares = [len(trainee.steps) / trainee.total_steps for trainee in trainees]
        for turn in range(SOLO_STEPS):
            for trainee, own in zip(trainees, spent, strict=True):
                batch = trainee.batch(trainee.total_steps * turn // SOLO_STEPS)
                start = time.perf_counter()
                (loss,) = self._gradients(model, [trainee], [batch])
                trainee.update(loss)
                _wait(model.device)
                own.append(
                    (time.perf_counter() - start) / sum(self.examples.lengths[row] for row in batch)
                )
        tokens = self.recipe.epochs * sum(self.examples.lengths)
        return [
            share * tokens * statistics.median(own)
            for share, own in zip(shares, spent, strict=True)
        ]


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


def _deal(trainees: Sequence[Trainee], count: int) -> list[list[Trainee]]:
    """Deal trials out to teams with about as much to do, by turns from the lowest rank: 0, 1, 1, 0, 0, 1, ..."""
    teams: list[list[Trainee]] = [[] for _ in range(count)]
    for place, trainee in enumerate(sorted(trainees, key=lambda one: one.trial.rank)):
        turn, team = divmod(place, count)
        teams[team if turn % 2 == 0 else count - 1 - team].append(trainee)
    return [team for team in teams if team]


def _wait(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
