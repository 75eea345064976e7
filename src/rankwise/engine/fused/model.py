"""A frozen model on packed tokens, with the adapters and heads of several trials."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import nn

from rankwise.engine.evaluate import padded_logits
from rankwise.engine.fused import attention
from rankwise.engine.fused.closing import Speaking, closing_early
from rankwise.engine.fused.heads import Head, find_head
from rankwise.engine.fused.linear import Factors, Stretches, fused_layers, is_fusable
from rankwise.engine.fused.packing import Packing, packed
from rankwise.models.auto import first_position, position_tables
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.models.quantization import computing_in_fp32
from rankwise.tasks.base import Encoded

CLOSE = 1e-3  # of the largest logit: what packed and padded logits may differ by; rounding is a thousandth of it


class Adapted(Protocol):
    """What a trial brings: its factors by layer, and its own copies of the modules trained in full."""

    factors: dict[str, Factors]
    head: dict[str, nn.Module]


class PackedModel:
    """Runs packed batches; made by `packed_model`, and usable inside its ``with`` block alone.

    Attributes:
        device: of the base.
        speaking: what `rankwise.engine.fused.closing` is told in every pass.
        closes_early: whether the model's last hidden states are those of the speaking tokens alone.
    """

    def __init__(
        self, base: BaseModel, head: Head, stretches: Stretches, autocast: torch.dtype | None
    ) -> None:
        self.model = base.model
        self.head = head
        self.stretches = stretches
        self.autocast = autocast
        self.device = next(base.model.parameters()).device
        self.speaking = Speaking()
        self.closes_early = False
        self.first_position = max(map(first_position, position_tables(base.model)), default=0)

    def logits(self, trials: Sequence[Adapted], parts: Sequence[Encoded]) -> list[torch.Tensor]:
        """Run every trial on its own examples, in one pass.

        Args:
            trials: K of them.
            parts: the examples of each trial, n_k of them.

        Returns:
            Logits, K tensors of (n_k, outputs), or of (m_k, vocabulary) for the m_k places to be told.
        """
        packing = Packing([tokens for part in parts for tokens in part.input_ids], self.device)
        self._give(trials, [sum(part.lengths) for part in parts])
        speakers, counts = self._speakers(packing, parts)  # (N,) and K
        self.speaking.rows, self.speaking.give = speakers, partial(self._give, trials, counts)
        with packed(packing), self._autocast():
            hidden = self.model.base_model(  # type: ignore[operator]
                input_ids=packing.input_ids,
                position_ids=packing.position_ids + self.first_position,
                **self._segments(parts),
            ).last_hidden_state[0]  # (T, H)
            if not self.closes_early:
                hidden = hidden.index_select(0, speakers)  # (N, H)
        with self._head_precision():
            logits = []
            for trial, rows in zip(trials, hidden.split(counts), strict=True):
                self._give(
                    [trial], [len(rows)]
                )  # the head's layers may be targets as well, as BERT's pooler is
                modules = {name: self._module(trial, name) for name in self.head.names}
                logits.append(
                    self.head.logits(modules, rows if self.autocast is None else rows.float())
                )
        return logits if self.autocast is None else [own.float() for own in logits]

    def _head_precision(self) -> AbstractContextManager[Any]:
        """Return the context for a head: that of fp32, or logits would be rounded before losses are taken from them.

        Only a language model's head keeps the lower precision while it trains: over a whole vocabulary its product is
        a large part of a step. Neither takes more memory, since weights and logits are there in fp32 in any case.
        """
        lower = self.head.token == "places" and torch.is_grad_enabled()
        return self._autocast() if lower else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        return (
            nullcontext()
            if self.autocast is None
            else torch.autocast(self.device.type, self.autocast)
        )

    def _speakers(
        self, packing: Packing, parts: Sequence[Encoded]
    ) -> tuple[torch.Tensor, list[int]]:
        """Return the tokens that go to the head, (N,), and how many of them each trial has."""
        if self.head.token != "places":
            return packing.first if self.head.token == "first" else packing.last, [
                len(part) for part in parts
            ]
        places = [own for part in parts for own in part.positions or ()]
        starts = packing.first.tolist()
        rows = [start + place for start, own in zip(starts, places, strict=True) for place in own]
        counts = [sum(map(len, part.positions or ())) for part in parts]
        return torch.tensor(rows, device=self.device), counts

    def _segments(self, parts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Return which of two texts each token is of, where the tokenizer tells, (1, T)."""
        segments = [own for part in parts for one in part.token_type_ids or () for own in one]
        return {"token_type_ids": torch.tensor([segments], device=self.device)} if segments else {}

    def _give(self, trials: Sequence[Adapted], rows: Sequence[int]) -> None:
        """Say whose the rows are that linear layers will see, each trial's so many."""
        self.stretches.factors = [trial.factors for trial in trials if trial.factors]
        self.stretches.bounds = [0, *accumulate(rows)]

    def _module(self, trial: Adapted, name: str) -> nn.Module:
        return trial.head[name] if name in trial.head else self.model.get_submodule(name)


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
        id(module.config): module.config
        for module in base.model.modules()
        if hasattr(module, "config")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    with fused_layers(base.model, list(base.targets)) as stretches:
        for config in configs.values():
            config._attn_implementation = attention.NAME
        try:
            model = PackedModel(base, head, stretches, autocast)
            with closing_early(
                base.model, stretches, model.speaking, head.token == "first"
            ) as model.closes_early:
                yield model
        finally:
            for key, config in configs.items():
                config._attn_implementation = before[key]


def why_not(base: BaseModel, examples: Encoded) -> str | None:
    """Say why a base cannot run packed; None if it can.

    The last word has a trial run: a shortest example and one of median length, packed and padded, must give the same
    logits.

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
    by_length = sorted(range(len(examples)), key=examples.lengths.__getitem__)
    two = examples.take([by_length[0], by_length[len(by_length) // 2]])
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), quiet_libraries(), computing_in_fp32(model):
            padded = padded_logits(model, base.tokenizer, two)  # (M, outputs)
            try:
                with packed_model(base) as packed_base:
                    (ours,) = packed_base.logits([_Bare()], [two])  # (M, outputs)
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
