"""Healing: a short training after a cut, at the cut's own rank.

The learning rate is searched as for a rank that is trained alone, from the law's rate on
(`rankwise.strategies.learning_rates`), by the loss on a part of the training data that is held
back. So no held-out example takes part before the healed adapter is judged.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import pandas as pd

from rankwise.decide import best_learning_rate
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import unsupported_reason
from rankwise.engine.schedule import steps_per_epoch
from rankwise.engine.trial import Engine, FinishedTrial, Trial
from rankwise.errors import RequestError, some
from rankwise.lora.adapter import Adapter, factor_pairs
from rankwise.lora.alpha import AlphaPolicy
from rankwise.models.base_model import BaseModel
from rankwise.shrinking.config import ShrinkConfig
from rankwise.shrinking.cuts import Cut
from rankwise.shrinking.held_out import data_settings
from rankwise.shrinking.outcome import Healing
from rankwise.shrinking.scoring import Scorer, not_fusable
from rankwise.store.records import EVIDENCE_COLUMNS
from rankwise.strategies.config import AUTO
from rankwise.strategies.learning_rates import make_rate_search
from rankwise.strategies.trial_keys import missing_keys
from rankwise.tasks.base import Encoded, Examples, Task
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import ClassificationObjective

MOST_STEPS = 100  # of --heal-steps auto: one pass over the data, but no more than this
LEAST_EXAMPLES = 32  # a few batches, and some to choose the learning rate by
SEED = 0


@dataclass(frozen=True)
class TrainingData:
    """Training data without the examples that are held out, tokenised.

    Attributes:
        train: examples to train on.
        held_back: examples by which the learning rate is chosen.
        shared: how many examples are left out because they are held-out examples too.
    """

    train: Encoded
    held_back: Encoded
    shared: int


def read_training_data(
    config: ShrinkConfig, held_out: Task, base: BaseModel, adapter: Adapter
) -> TrainingData:
    """Read the data that the setting ``heal`` names.

    Raises:
        RequestError: they cannot be used, have classes that the held-out data lack, or too few of
            them are not held-out examples.
    """
    label = f"heal {str(config.heal)!r}"
    task = load_task(data_settings(config, adapter, data=config.heal))
    if type(task.objective) is not type(held_out.objective):
        raise RequestError(
            f"{label} holds {task.objective.describe()}, the held-out data "
            f"{held_out.objective.describe()}; give data of one form"
        )
    known = set(held_out.held_out.inputs)
    length = min(config.max_length or held_out.objective.max_length, base.max_length)
    parts, shared = [], 0
    joined = _joined(task.train, task.test)
    for examples in (joined, task.held_out):
        kept = [row for row, text in enumerate(examples.inputs) if text not in known]
        shared += len(examples) - len(kept)
        part = _with_classes(examples.take(kept), task, held_out, label)
        parts.append(base.encode(task, part, length)[0])
    train, held_back = parts
    if len(train) + len(held_back) < LEAST_EXAMPLES or not len(held_back):
        also = f", besides {shared} that are held-out examples too" if shared else ""
        raise RequestError(
            f"{label} has {len(train) + len(held_back)} usable examples{also}; give at least "
            f"{LEAST_EXAMPLES} training examples that are not held out"
        )
    return TrainingData(train, held_back, shared)


def _joined(one: Examples, other: Examples) -> Examples:
    return Examples(one.ids + other.ids, one.inputs + other.inputs, one.labels + other.labels)


def _with_classes(examples: Examples, task: Task, held_out: Task, label: str) -> Examples:
    """Number the classes as in the held-out data."""
    own, wanted = task.objective, held_out.objective
    if not isinstance(own, ClassificationObjective):
        return examples
    assert isinstance(wanted, ClassificationObjective)  # both have the same loss
    names = list(wanted.label_names)
    if unknown := [name for name in own.label_names if name not in names]:
        raise RequestError(
            f"{label} has classes that the held-out data lack: {some(unknown)}; name all classes "
            "with --labels"
        )
    numbers = tuple(names.index(own.label_names[number]) for number in examples.labels)
    return replace(examples, labels=numbers)


class Healer:
    """Trains cuts of one adapter on.

    Args:
        config: the request.
        scorer: scores the adapter's cuts; healing takes the same engine, if it can train.
        data: what to train on.

    Raises:
        RequestError: the adapter has parts that are not trained here.
    """

    def __init__(self, config: ShrinkConfig, scorer: Scorer, data: TrainingData) -> None:
        self.scorer = scorer
        self.data = data
        settings = TrainingConfig(device=config.device, precision=config.precision)
        one_pass = steps_per_epoch(settings, data.train)
        self.steps = config.heal_steps or min(one_pass, MOST_STEPS)
        self._engine = self._make_engine(replace(settings, max_steps=self.steps))

    def _make_engine(self, settings: TrainingConfig) -> Engine:
        base, (train, held_back) = self.scorer.base, (self.data.train, self.data.held_back)
        if self.scorer.name == "fused" and unsupported_reason(base, train) is None:
            return FusedEngine(base, train, held_back, settings)
        from rankwise.engine.reference import ReferenceEngine  # imports the Trainer

        return ReferenceEngine(base, train, held_back, settings)

    def heal(self, cut: Cut) -> tuple[Cut, Healing]:
        """Train a cut at the best learning rate; return the trained adapter and how it was made.

        Raises:
            RequestError: no learning rate is left at which training does not diverge.
        """
        began = time.perf_counter()
        start = self.scorer.complete(cut.adapter)
        scaling = median(pair.scaling for pair in factor_pairs(start))
        policy = AlphaPolicy("its own", multiple=scaling)
        task_type = self.scorer.base.objective.task_type
        search = make_rate_search(AUTO, policy, task_type, None)
        evidence = pd.DataFrame({name: [] for name in EVIDENCE_COLUMNS})
        finished: dict[float, FinishedTrial] = {}
        while keys := missing_keys(search.propose_alone(cut.rank, evidence), evidence):
            trials = [
                Trial(
                    rank=cut.rank,
                    seed=SEED,
                    learning_rate=key.learning_rate,
                    lora_alpha=scaling * cut.rank,
                    starts_from="cut",
                )
                for key in keys
            ]
            for one in self._engine.train(trials, {"cut": start}):
                finished[one.trial.learning_rate] = one
                evidence = pd.concat([*([evidence] if len(evidence) else []), _rows(one)])
        rate = best_learning_rate(evidence)
        if rate is None:
            raise RequestError(
                f"heal: training the cut to rank {cut.rank} diverged at every learning rate tried "
                f"({some([f'{each:g}' for each in finished])}); leave --heal out"
            )
        healing = Healing(
            rank=cut.rank,
            steps=self.steps,
            learning_rate=rate,
            rates=tuple(sorted(finished)),
            examples=len(self.data.train),
            shared=self.data.shared,
            seconds=time.perf_counter() - began,
        )
        return replace(cut, adapter=_as_saved(cut.adapter, finished[rate]), healed=True), healing


def _rows(finished: FinishedTrial) -> pd.DataFrame:
    """Return a trial's evidence as a search for learning rates takes it."""
    trial, frame = finished.trial, finished.evidence
    if finished.diverged:
        frame = pd.DataFrame({"example_id": [-1], "loss": [float("nan")], "score": [0.0]})
    return frame.assign(
        rank=trial.rank,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        diverged=finished.diverged,
    )[list(EVIDENCE_COLUMNS)]


def _as_saved(cut: Adapter, finished: FinishedTrial) -> Adapter:
    """Return the trained adapter with the cut's config, unless a head was trained besides."""
    is_same = finished.adapter.keys() == cut.tensors.keys()
    return Adapter(finished.adapter, cut.config if is_same else finished.adapter_config)


def refuse_unhealable(adapters: Sequence[Adapter], bases: Sequence[BaseModel]) -> None:
    """Refuse adapters that training cannot start from.

    Raises:
        RequestError: an adapter has other parts than factors of linear layers and a head.
    """
    for adapter, base in zip(adapters, bases, strict=True):
        if (reason := not_fusable(base, adapter)) is not None:
            raise RequestError(
                f"heal: {reason}; adapters of linear layers alone can be trained on here, leave "
                "--heal out"
            )
