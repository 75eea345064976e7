"""A frozen model on packed tokens, with the adapters and heads of several trials."""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from rankwise.engine.config import AttentionName
from rankwise.engine.evaluate import padded_logits
from rankwise.engine.fused.attention import attention_name, register
from rankwise.engine.fused.checkpointing import PassState, blocks_keep_inputs
from rankwise.engine.fused.dropout import DropoutStream
from rankwise.engine.fused.factors import LoraFactors
from rankwise.engine.fused.frozen import is_fusable
from rankwise.engine.fused.heads import Head, PooledTokens, find_head, last_block_for_pooled_tokens
from rankwise.engine.fused.linear import fused_layers
from rankwise.engine.fused.loss import (
    TokenHead,
    frozen_token_losses,
    is_frozen,
    token_measures,
    trained_token_losses,
)
from rankwise.engine.fused.packing import Packing, packed, to_device
from rankwise.engine.fused.products import ProductsName, choose_products
from rankwise.engine.fused.segments import LoraSettings, Segments
from rankwise.models.auto import first_position, position_tables
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import attention_implementation, quiet_libraries
from rankwise.models.out_of_memory import (
    OutOfMemory,
    attempt,
    is_out_of_memory,
    too_little_memory,
)
from rankwise.models.quantization import computing_in_fp32
from rankwise.tasks.base import Encoded

# Packed and padded logits may differ by this share of the largest one, in half precision by more
# (`rounding`). In fp32 rounding is a thousandth of it.
CLOSE = 1e-3
ROUNDINGS = 8  # in each block: products, norms, attention, activations and sums of residuals


class PackedTrial(Protocol):
    """A trial as a packed pass needs it."""

    factors: dict[str, LoraFactors]  # by layer name
    head: dict[str, nn.Module]  # copies of the modules trained in full, by name

    @property
    def dropout_stream(self) -> DropoutStream | None:
        """Where its dropout masks of the next step come from; None if it is scored only."""
        ...


@dataclass(frozen=True)
class PackedBatches:
    """The batches of K trials laid end to end, with all that a pass needs of them on the device."""

    packing: Packing
    tokens: list[int]  # of each trial
    rows: torch.Tensor  # token rows that go to the head, (N,)
    counts: list[int]  # how many of these each trial has
    token_types: dict[str, torch.Tensor]
    targets: list[torch.Tensor]  # of each trial, (counts[k],)


class PackedModel:
    """Runs packed batches. `packed_model` makes it, for use inside its ``with`` block alone."""

    def __init__(self, base: BaseModel, head: Head, segments: Segments) -> None:
        self.model = base.model
        self.objective = base.objective
        self.head = head
        self.segments = segments
        self.device = base.device
        self.pooled = PooledTokens()
        self.state = PassState(segments, self.pooled)
        self.pools_early = False  # whether the last hidden states are those of pooled tokens alone
        self.first_position = max(map(first_position, position_tables(base.model)), default=0)
        # Decoders would keep the keys and values of every layer for a text that goes on.
        inner: Any = base.model.base_model
        takes_cache = "use_cache" in inspect.signature(inner.forward).parameters
        self._no_cache = {"use_cache": False} if takes_cache else {}

    def pack(self, batches: Sequence[Encoded]) -> PackedBatches:
        """Lay batches end to end and copy them to the device; a thread may do this ahead."""
        packing = Packing([tokens for batch in batches for tokens in batch.input_ids], self.device)
        rows, counts = self._pooled_rows(packing, batches)
        targets = [to_device(self.objective.targets(batch), self.device) for batch in batches]
        tokens = [sum(batch.lengths) for batch in batches]
        types = self._token_types(batches)
        return PackedBatches(packing, tokens, rows, counts, types, targets)

    def loss_sums(
        self, trials: Sequence[PackedTrial], batches: Sequence[Encoded] | PackedBatches
    ) -> torch.Tensor:
        """Run K trials, each on its batch, in one pass; return the sum of each one's losses, (K,).

        A batch has `Encoded.loss_count` losses, so the sums of its parts add up to that of the
        whole.
        """
        batches = batches if isinstance(batches, PackedBatches) else self.pack(batches)
        targets = batches.targets
        with self._pass(trials, batches) as (hidden, counts):
            if self.head.token_head is None:
                logits = self._logits(trials, hidden.split(counts))
                losses = [
                    self.objective.losses(*each) for each in zip(logits, targets, strict=True)
                ]
            else:
                losses = self._token_losses(trials, hidden, targets)
            return torch.stack([each.sum() for each in losses])

    def measures(
        self, trials: Sequence[PackedTrial], batch: Encoded
    ) -> list[dict[str, np.ndarray]]:
        """Score K trials on the same N examples in one pass; return each one's measures, (N,)."""
        batches = self.pack([batch] * len(trials))
        with self._pass(trials, batches) as (hidden, counts):
            states = hidden.split(counts)
            if self.head.token_head is None:
                logits = self._logits(trials, states)
                return [self.objective.measure(each, batch) for each in logits]
            measured = []
            for trial, own, targets in zip(trials, states, batches.targets, strict=True):
                losses, is_correct = token_measures(self._token_head(trial), own, targets)
                measured.append(
                    self.objective.by_example(losses.cpu().numpy(), is_correct.cpu().numpy(), batch)
                )
            return measured

    def begin_step(self, trials: Sequence[PackedTrial]) -> None:
        """Make the trials' factors ready for passes; to be called after each change of them."""
        streams = [trial.dropout_stream for trial in trials]
        self.segments.begin_step([trial.factors for trial in trials], streams)

    def end_step(self) -> None:
        """Bring the gradients of all passes since `begin_step` to the trials' buffers."""
        self.segments.end_step()

    def logits(
        self, trials: Sequence[PackedTrial], batches: Sequence[Encoded]
    ) -> list[torch.Tensor]:
        """Run K trials, each on its batch of n_k examples, in one pass.

        Returns:
            K tensors (n_k, outputs), or (m_k, vocabulary) for m_k supervised tokens.
        """
        with self._pass(trials, self.pack(batches)) as (hidden, counts):
            return self._logits(trials, hidden.split(counts))

    @contextmanager
    def _pass(
        self, trials: Sequence[PackedTrial], batches: PackedBatches
    ) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Run a pass up to its head, which runs inside the ``with`` block.

        Yields the hidden states of pooled tokens, (N, H), and how many of them each trial has.
        """
        packing, rows, counts = batches.packing, batches.rows, batches.counts
        self.segments.begin_pass([trial.factors for trial in trials])
        self._assign_segments(trials, batches.tokens)
        self.pooled.rows = rows
        self.pooled.assign_segments = partial(self._assign_segments, trials, counts)
        with packed(packing):
            hidden = self.model.base_model(  # type: ignore[operator]
                input_ids=packing.input_ids,
                position_ids=packing.position_ids + self.first_position,
                **self._no_cache,
                **batches.token_types,
            ).last_hidden_state[0]  # (T, H)
            if not self.pools_early:
                hidden = hidden.index_select(0, rows)  # (N, H)
            yield hidden, counts

    def _logits(
        self, trials: Sequence[PackedTrial], states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return each trial's logits from its hidden states."""
        logits = []
        for trial, own in zip(trials, states, strict=True):
            # A head's layers may be targets as well, as BERT's pooler is.
            self._assign_segments([trial], [len(own)])
            modules = {name: self._module(trial, name) for name in self.head.names}
            logits.append(self.head.logits(modules, own))
        return logits

    def _token_losses(
        self,
        trials: Sequence[PackedTrial],
        hidden: torch.Tensor,
        targets: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Return the losses of each trial's tokens, K of (m_k,)."""
        counts = list(map(len, targets))
        head = self._token_head(trials[0])
        if head.is_frozen:  # one head for all
            losses = frozen_token_losses(head, hidden, torch.cat(list(targets)))
            return list(losses.split(counts))
        return [
            trained_token_losses(partial(self._token_head, trial), own, each, self.state.run)
            for trial, own, each in zip(trials, hidden.split(counts), targets, strict=True)
        ]

    def _token_head(self, trial: PackedTrial, chunk: int = 0) -> TokenHead:
        """Return a language model's head with a trial's adapter on it, if it has one.

        Args:
            trial: the trial.
            chunk: number of the chunk of its tokens that the head gets, for dropout.
        """
        assert self.head.token_head is not None
        layer = self._module(trial, self.head.names[0])
        if is_frozen(layer):
            return self.head.token_head(layer)

        def adapted(states: torch.Tensor) -> torch.Tensor:
            self._assign_segments([trial], [len(states)], chunk)
            product: torch.Tensor = layer(states)
            return product

        return self.head.token_head(adapted)

    def _assign_segments(
        self, trials: Sequence[PackedTrial], rows: Sequence[int], chunk: int = 0
    ) -> None:
        self.segments.assign([trial.factors for trial in trials], rows, chunk)

    def _pooled_rows(
        self, packing: Packing, batches: Sequence[Encoded]
    ) -> tuple[torch.Tensor, list[int]]:
        """Return the token rows that go to the head, (N,), and how many of them each trial has."""
        if self.head.pooling != "supervised":
            first = self.head.pooling == "first"
            return packing.first if first else packing.last, [len(batch) for batch in batches]
        positions = [each for batch in batches for each in batch.positions or ()]
        rows = []
        for start, supervised in zip(packing.starts.tolist(), positions, strict=True):
            rows += [start + position for position in supervised]
        counts = [sum(map(len, batch.positions or ())) for batch in batches]
        return to_device(torch.tensor(rows), self.device), counts

    def _token_types(self, batches: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Return which of two texts each token belongs to, (1, T), if the tokenizer has them."""
        sequences = [each for batch in batches for each in batch.token_type_ids or ()]
        types = [token_type for sequence in sequences for token_type in sequence]
        if not types:
            return {}
        return {"token_type_ids": to_device(torch.tensor([types]), self.device)}

    def _module(self, trial: PackedTrial, name: str) -> nn.Module:
        return trial.head[name] if name in trial.head else self.model.get_submodule(name)


@contextmanager
def packed_model(
    base: BaseModel,
    dropout: float = 0.0,
    attention: AttentionName = "auto",
    products: ProductsName | None = None,
    checkpointing: bool = False,
) -> Iterator[PackedModel]:
    """Let a base run packed batches until the end of the ``with`` block, then restore it.

    Args:
        base: a base for which `unsupported_reason` returns None.
        dropout: share of an adapter's input that is set to zero in training.
        attention: kernel of attention, see `rankwise.engine.fused.attention`.
        products: how LoRA products run; None takes the fastest way.
        checkpointing: whether blocks keep their inputs alone, and run again for gradients.
    """
    head = find_head(base.model)
    assert head is not None
    register()
    dtype = base.compute_dtype
    how = products or choose_products(base.device, dtype)
    settings = LoraSettings(how, dtype, dropout, keep_dequantized=checkpointing)
    with (
        fused_layers(base.model, list(base.targets), settings) as segments,
        attention_implementation(base.model, attention_name(attention)),
    ):
        model = PackedModel(base, head, segments)
        # One query for each sequence leaves no input of keys and values to drop.
        one_query = head.pooling == "first" and dropout == 0.0
        arguments = (base.model, segments, model.pooled, one_query)
        blocks = blocks_keep_inputs(base.model, model.state) if checkpointing else nullcontext()
        with last_block_for_pooled_tokens(*arguments) as model.pools_early, blocks:
            yield model


def unknown_part(base: BaseModel) -> str | None:
    """Return the part of a base without adapters that this engine does not know, or None."""
    model = base.model
    head = find_head(model)
    if head is None:
        return f"it does not know the head of {type(model).__name__}"
    outside = [name for name in base.trained_in_full if name not in head.names]
    if outside:
        return f"{outside[0]} is trained in full and lies outside the head"
    unfusable = [name for name in base.targets if not is_fusable(model.get_submodule(name))]
    if unfusable:
        return f"{unfusable[0]} is a {type(model.get_submodule(unfusable[0])).__name__}"
    return None


def unsupported_reason(base: BaseModel, examples: Encoded) -> str | None:
    """Return why a base without adapters cannot run packed, or None if it can.

    The final check is a run: the shortest example and one of median length, packed and padded, must
    give the same logits.

    Raises:
        RankwiseError: the device has too little memory for that run.
    """
    unknown = unknown_part(base)
    if unknown is not None:
        return unknown
    by_length = sorted(range(len(examples)), key=examples.lengths.__getitem__)
    two = examples.take([by_length[0], by_length[len(by_length) // 2]])
    try:
        return attempt(partial(_why_logits_differ, base, two))
    except OutOfMemory as error:
        what = f"a pass of two examples of up to {max(two.lengths)} tokens"
        changes = "lower --max-length, or add --quantization nf4"
        raise too_little_memory(error, base.device, what, changes) from None


def _why_logits_differ(base: BaseModel, two: Encoded) -> str | None:
    """Return why two examples, packed, do not give the logits of the padded ones, or None."""
    model = base.model
    no_adapter = SimpleNamespace(factors={}, head={})
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), quiet_libraries(), computing_in_fp32(model):
            expected = padded_logits(model, base.tokenizer, two)  # (M, outputs)
            try:
                with packed_model(base) as packed_base:
                    (logits,) = packed_base.logits([no_adapter], [two])  # (M, outputs)
            except Exception as error:  # models not made for packing raise anything
                if is_out_of_memory(error):
                    raise
                kind = type(error).__name__
                return f"{type(model).__name__} does not take packed sequences ({kind})"
    finally:
        model.train(was_training)
    allowed = rounding(base) * float(expected.abs().max())
    if not torch.allclose(logits, expected.to(logits.dtype), rtol=0.0, atol=allowed):
        return f"{type(model).__name__} gives other logits for packed sequences"
    return None


def rounding(base: BaseModel) -> float:
    """Return the share of the largest logit by which rounding may move logits.

    Each of n roundings on the way to a logit moves it by at most half of the type's epsilon. They
    are independent, so two passes with 2 n of them differ by about sqrt(2 n) as much.
    """
    config: Any = base.model.config
    blocks = getattr(config.get_text_config(), "num_hidden_layers", 1)
    roundings = 2 * ROUNDINGS * blocks
    return max(CLOSE, math.sqrt(roundings) * torch.finfo(base.compute_dtype).eps / 2)
