"""A frozen sequence classifier on packed tokens, with the adapters and heads of several trials."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import nn

from rankwise.engine import attention
from rankwise.engine.base_model import BaseModel
from rankwise.engine.fused_linear import Factors, Stretches, fused_layers, is_fusable
from rankwise.engine.heads import Head, find_head
from rankwise.engine.packing import Packing, packed
from rankwise.lora.libraries import quiet_libraries
from rankwise.tasks.classification import Encoded

CLOSE = 1e-3  # of the largest logit: what packed and padded logits may differ by; rounding is a thousandth of it


class _Speaking(threading.local):
    """The tokens that speak for a pass's sequences, for the thread that runs it.

    Attributes:
        rows: their places, (N,).
        give: says whose they are.
    """

    rows: torch.Tensor
    give: Callable[[], None]


class Adapted(Protocol):
    """What a trial brings: its factors by layer, and its own copies of the modules trained in full."""

    factors: dict[str, Factors]
    head: dict[str, nn.Module]


class PackedModel:
    """Runs packed batches; made by `packed_model`, and usable inside its ``with`` block alone.

    Attributes:
        device: of the base.
    """

    def __init__(self, base: BaseModel, head: Head, stretches: Stretches, autocast: torch.dtype | None) -> None:
        self.model = base.model
        self.head = head
        self.stretches = stretches
        self.autocast = autocast
        self.device = next(base.model.parameters()).device
        positions = [
            module.padding_idx
            for name, module in base.model.named_modules()
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        ]
        self.closing = _after_last_attention(base.model)
        self._speaking = _Speaking()
        # RoBERTa counts positions from behind the padding index.
        self.first_position = max((index + 1 for index in positions if index is not None), default=0)

    def logits(self, trials: Sequence[Adapted], sequences: Sequence[Sequence[Sequence[int]]]) -> list[torch.Tensor]:
        """Run every trial on its own sequences, in one pass.

        Args:
            trials: K of them.
            sequences: the token ids of each trial's sequences, K lists of n_k.

        Returns:
            Logits, K tensors of (n_k, classes).
        """
        packing = Packing([tokens for own in sequences for tokens in own], self.device)
        self._give(trials, [sum(len(tokens) for tokens in own) for own in sequences])
        on = nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)
        speakers = packing.first if self.head.token == "first" else packing.last  # (N,)
        counts = [len(own) for own in sequences]
        self._speaking.rows, self._speaking.give = speakers, partial(self._give, trials, counts)
        with packed(packing), on:
            hidden = self.model.base_model(  # type: ignore[operator]
                input_ids=packing.input_ids, position_ids=packing.position_ids + self.first_position
            ).last_hidden_state[0]  # (T, H)
            if self.closing is None:
                hidden = hidden.index_select(0, speakers)  # (N, H)
            by_trial = hidden.split(counts)
            logits = []
            for trial, rows in zip(trials, by_trial, strict=True):
                self._give([trial], [len(rows)])  # BERT's pooler is a target as well, on one row a sequence
                logits.append(self.head.logits({name: self._module(trial, name) for name in self.head.names}, rows))
        return logits if self.autocast is None else [own.float() for own in logits]

    @contextmanager
    def closing_early(self) -> Iterator[None]:
        """Go on with the speaking tokens alone behind the last block's attention: nothing looks at the others."""
        if self.closing is None:
            yield
            return

        def narrow(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            self._speaking.give()
            return tuple(tensor.index_select(1, self._speaking.rows) for tensor in inputs)  # (1, T, H) to (1, N, H)

        hook = self.closing.register_forward_pre_hook(narrow)
        try:
            yield
        finally:
            hook.remove()

    def _give(self, trials: Sequence[Adapted], rows: Sequence[int]) -> None:
        """Say whose the rows are that linear layers will see, each trial's so many."""
        self.stretches.factors = [trial.factors for trial in trials if trial.factors]
        self.stretches.bounds = [0, *accumulate(rows)]

    def _module(self, trial: Adapted, name: str) -> nn.Module:
        return trial.head[name] if name in trial.head else self.model.get_submodule(name)


def _after_last_attention(model: nn.Module) -> nn.Module | None:
    """Return what comes right behind the last attention, if it takes attention's output and the residual as BERT does.

    Decoders and DistilBERT add the residual in between, in code that no hook reaches.
    """
    blocks = getattr(getattr(getattr(model, "base_model", None), "encoder", None), "layer", None)
    output = (
        getattr(getattr(blocks[-1], "attention", None), "output", None) if isinstance(blocks, nn.ModuleList) else None
    )
    return output if type(output).__name__.endswith("SelfOutput") else None


@contextmanager
def packed_model(base: BaseModel, autocast: torch.dtype | None = None) -> Iterator[PackedModel]:
    """Let a base run packed batches until the end of the ``with`` block, which leaves it as it was.

    Args:
        base: one for which `why_not` has nothing to say.
        autocast: lower precision for matrix products.
    """
    head = find_head(base.model)
    assert head is not None
    attention.register()
    configs: dict[int, Any] = {
        id(module.config): module.config for module in base.model.modules() if hasattr(module, "config")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    with fused_layers(base.model, list(base.targets)) as stretches:
        for config in configs.values():
            config._attn_implementation = attention.NAME
        try:
            model = PackedModel(base, head, stretches, autocast)
            with model.closing_early():
                yield model
        finally:
            for key, config in configs.items():
                config._attn_implementation = before[key]


def why_not(base: BaseModel, examples: Encoded) -> str | None:
    """Say why a base cannot run packed; None if it can.

    The last word has a trial run: a shortest and a longest example, packed and padded, must give the same logits.

    Args:
        base: the frozen base, without adapters.
        examples: at least one.
    """
    model = base.model
    head = find_head(model)
    if head is None:
        return f"it does not know the head of {type(model).__name__}"
    outside = [name for name in base.trained_in_full if name not in head.names]
    if outside:
        return f"{outside[0]} is trained in full and lies outside the head"
    other = [name for name in base.targets if not is_fusable(model.get_submodule(name))]
    if other:
        return f"{other[0]} is a {type(model.get_submodule(other[0])).__name__}"
    by_length = sorted(examples.input_ids, key=len)
    sequences = [by_length[0], by_length[len(by_length) // 2]]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), quiet_libraries():
            batch = base.tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
            padded = model(**batch.to(next(model.parameters()).device)).logits  # (2, classes)
            try:
                with packed_model(base) as packed_base:
                    (ours,) = packed_base.logits([_Bare()], [sequences])  # (2, classes)
            except Exception as error:  # whatever a model that is not made for this raises
                return f"{type(model).__name__} does not take packed sequences ({type(error).__name__})"
    finally:
        model.train(was_training)
    if not torch.allclose(ours, padded, rtol=0.0, atol=CLOSE * float(padded.abs().max())):
        return f"{type(model).__name__} gives other logits for packed sequences"
    return None


class _Bare:
    """No adapter, and the base's own head."""

    def __init__(self) -> None:
        self.factors: dict[str, Factors] = {}
        self.head: dict[str, nn.Module] = {}
