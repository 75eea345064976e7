"""Scoring of an adapter and its truncations, together where the fused engine can run them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rankwise.engine.config import EngineName, TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import unsupported_reason
from rankwise.engine.trial import Engine
from rankwise.lora.adapter import FACTOR_NAME, PEFT_PREFIX, Adapter, factor_pairs
from rankwise.lora.experts import WRAPPED
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded

if TYPE_CHECKING:
    import pandas as pd


class Scorer:
    """Scores adapters on more and more of the held-out examples, and counts the passes.

    Args:
        base: the base, with the adapters' layers as targets.
        adapter: the adapter whose truncations are scored; it tells which engine can run them.
        examples: held-out examples in the order in which they are scored.
        engine: engine asked for.

    Attributes:
        obstacle: why the reference engine scores instead of the fused one, or None.
        name: engine that scores.
        passes: forward passes so far, counted by examples.
        seconds: time of all passes.
    """

    def __init__(
        self, base: BaseModel, adapter: Adapter, examples: Encoded, engine: EngineName
    ) -> None:
        self.base = base
        self.examples = examples
        self.passes = 0
        self.seconds = 0.0
        self.obstacle: str | None = None
        if engine == "fused":
            self.obstacle = not_fusable(base, adapter) or unsupported_reason(base, examples)
        is_fused = engine == "fused" and self.obstacle is None
        self.name = "fused" if is_fused else "reference"
        self._engine = self._make_engine(is_fused)

    def _make_engine(self, fused: bool) -> Engine:
        settings = TrainingConfig()  # nothing is trained
        if fused:
            return FusedEngine(self.base, self.examples, self.examples, settings)
        from rankwise.engine.reference import ReferenceEngine  # imports the Trainer

        return ReferenceEngine(self.base, self.examples, self.examples, settings)

    def score(self, adapters: Sequence[Adapter], start: int, stop: int) -> "list[pd.DataFrame]":
        """Return losses and scores of each adapter on the examples from start to stop, in order.

        Raises:
            RequestError: an adapter cannot be attached to the base, from the engine.
            RankwiseError: memory does not suffice, from the engine.
        """
        part = self.examples.take(range(start, stop))
        began = time.perf_counter()
        ready = [self.complete(adapter) for adapter in adapters]
        with _restored(self.base, adapters[0]):
            frames = self._engine.score(ready, part)
        self.seconds += time.perf_counter() - began
        self.passes += len(adapters) * (stop - start)
        return [frame.set_index("example_id").loc[list(part.ids)] for frame in frames]

    def complete(self, adapter: Adapter) -> Adapter:
        """Return the adapter in fp32, with the base's own head if it has none."""
        tensors = {name: x.float() for name, x in adapter.tensors.items()}
        for name in self.base.trained_in_full:
            for key, weight in self.base.model.get_submodule(name).state_dict().items():
                tensors.setdefault(f"{PEFT_PREFIX}{name}.{key}", weight.detach().cpu().clone())
        return replace(adapter, tensors=tensors)


@contextmanager
def _restored(base: BaseModel, adapter: Adapter) -> Iterator[None]:
    """Give the base back the biases and layers that PEFT overwrites with those of an adapter."""
    names = {name.removeprefix(PEFT_PREFIX).replace(WRAPPED, "") for name in adapter.tensors}
    own = {name: x for name, x in base.model.named_parameters() if name in names}
    before = {name: x.detach().clone() for name, x in own.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)


def not_fusable(base: BaseModel, adapter: Adapter) -> str | None:
    """Return why the fused engine cannot run an adapter, or None."""
    if any(
        pair.experts > 1 or pair.is_embedding or pair.a.ndim > 2 for pair in factor_pairs(adapter)
    ):
        return "the adapter has factors of embeddings, convolutions or stacked experts"
    if adapter.config.get("alora_invocation_tokens"):
        return "the adapter acts only after its invocation tokens (aLoRA)"
    heads = tuple(f"{PEFT_PREFIX}{name}." for name in base.trained_in_full)
    for name in adapter.tensors:
        if not FACTOR_NAME.fullmatch(name) and not name.startswith(heads or ("\0",)):
            return f"the adapter also has {name.removeprefix(PEFT_PREFIX)}"
    return None


def columns(frames: "Sequence[pd.DataFrame]", name: str) -> np.ndarray:
    """Return one measure of several adapters, (K, n)."""
    return np.stack([frame[name].to_numpy(dtype=float) for frame in frames])
