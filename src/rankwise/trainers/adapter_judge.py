"""Judging by the adapter that a trial left: it is scored on the held-out examples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rankwise.engine.config import EngineName
from rankwise.engine.trial import Trial, no_evidence
from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter
from rankwise.lora.resize import check_init, check_resizable
from rankwise.models.base_model import BaseModel
from rankwise.shrinking.held_out import base_for
from rankwise.shrinking.scoring import Scorer
from rankwise.tasks.base import Encoded
from rankwise.trainers.engine import DIVERGED, Judged
from rankwise.trainers.left_adapter import (
    UnusableTrialError,
    find_adapter,
    read_trained_adapter,
)


class AdapterJudge:
    """Scores the adapter that a trial left on the held-out examples, over one base for all trials.

    Args:
        base: the frozen base.
        held_out: the held-out examples.
        engine: engine that scores; the reference engine stands in where it cannot.
        truncates: whether adapters will be truncated.
    """

    def __init__(
        self, base: BaseModel, held_out: Encoded, engine: EngineName, truncates: bool = False
    ) -> None:
        self.base = base
        self.held_out = held_out
        self.engine = engine
        self.check = check_resizable if truncates else check_init

    def judge(self, trial: Trial, out: Path) -> Judged:
        """Find, check and score the adapter of a trial."""
        adapter = read_trained_adapter(find_adapter(out), trial, self.base.name)
        if adapter is None:
            return DIVERGED
        try:
            self.check(adapter, "its adapter")
            (evidence,) = self.score([adapter])
        except RequestError as error:
            raise UnusableTrialError(str(error)) from None
        diverged = not bool(np.isfinite(evidence["loss"]).all())
        return Judged(
            evidence=no_evidence() if diverged else evidence,
            diverged=diverged,
            adapter_config=dict(adapter.config),
            adapter=dict(adapter.tensors),
        )

    def score(
        self, adapters: Sequence[Adapter], examples: Encoded | None = None
    ) -> list[pd.DataFrame]:
        """Score adapters of the same layers together.

        Raises:
            RequestError: an adapter does not fit the base.
        """
        chosen = self.held_out if examples is None else examples
        base = base_for(self.base, adapters[0], "its adapter")
        scorer = Scorer(base, adapters[0], chosen, self.engine)
        return [frame.reset_index() for frame in scorer.score(adapters, 0, len(chosen))]
