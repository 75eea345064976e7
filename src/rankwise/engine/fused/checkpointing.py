"""Gradient checkpointing: a part of a packed pass keeps its inputs, and runs again when needed.

Layers read the state of the pass around them: segments, pooled tokens, packing. When a part runs
again, in the backward pass, that state may be of a later pass, and on a GPU autograd runs in a
thread of its own, which has no such state. So a part that runs again gets back the state that it
started with.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rankwise.engine.config import CheckpointingName
from rankwise.engine.fused.heads import PooledTokens
from rankwise.engine.fused.packing import current_packing, packed
from rankwise.engine.fused.segments import Segments
from rankwise.errors import RequestError


class PassState:
    """What layers read of the pass that runs in their thread."""

    def __init__(self, segments: Segments, pooled: PooledTokens) -> None:
        self.segments = segments
        self.pooled = pooled

    def run(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """Run a function of the pass that keeps its inputs alone, and runs again for gradients."""
        if not torch.is_grad_enabled():
            return function(*inputs, **options)
        return checkpoint(
            function,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,  # dropout draws from the trial's seed and the step
            context_fn=self._contexts,
            **options,
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the first run and of the second."""
        packing = current_packing()
        segments, pooled = self.segments.snapshot(), dict(vars(self.pooled))

        @contextmanager
        def restored() -> Iterator[None]:
            with _holding(self.segments, segments), _holding(self.pooled, pooled), packed(packing):
                yield

        return nullcontext(), restored()


@contextmanager
def _holding(holder: threading.local, values: dict[str, Any]) -> Iterator[None]:
    """Give this thread's copy of an object other attributes inside the ``with`` block."""
    attributes = vars(holder)
    before = dict(attributes)
    attributes.update(values)
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(before)


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformers model that can keep their inputs alone."""
    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]


def keeps_inputs_alone(model: nn.Module, setting: CheckpointingName) -> bool:
    """Return whether the blocks of a model keep their inputs alone.

    Raises:
        RequestError: the setting is "on", and the model has no such blocks.
    """
    if setting == "on" and not checkpointed_blocks(model):
        kind = type(model).__name__
        raise RequestError(f"gradient_checkpointing 'on': {kind} has none; take off or auto")
    return setting == "on"


@contextmanager
def blocks_keep_inputs(model: nn.Module, state: PassState) -> Iterator[None]:
    """Let each block of a model keep its inputs alone until the end of the ``with`` block."""
    blocks = checkpointed_blocks(model)
    for block in blocks:
        vars(block)["forward"] = partial(state.run, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]
