"""The end of a BERT-like encoder: where only the tokens that speak for a sequence matter, only they are computed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rankwise.engine.fused.attention import regrouped
from rankwise.engine.fused.linear import FusedLinear, Stretches
from rankwise.engine.fused.packing import current_packing

# Whose self-attention is that of BERT, module by module.
AS_BERT = frozenset(
    f"{name}SelfAttention" for name in ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")
)


class Speaking(threading.local):
    """The tokens that speak for a pass's sequences, for the thread that runs it.

    Attributes:
        rows: their places, (N,).
        give: tells the model's `Stretches` that linear layers see these rows from here on, not all tokens.
    """

    rows: torch.Tensor
    give: Callable[[], None]


@contextmanager
def closing_early(
    model: nn.Module, stretches: Stretches, speaking: Speaking, first: bool
) -> Iterator[bool]:
    """Go on with the speaking tokens alone from the last block's attention on: nothing looks at the others.

    Args:
        model: on packed tokens, its targets `FusedLinear` layers.
        stretches: of these.
        speaking: is read in every pass.
        first: whether a sequence's first token alone speaks for it; the last attention, where it is BERT's own, is then
            asked for nothing else.

    Yields:
        Whether the model's last hidden states are those of the speaking tokens, (1, N, H), and not of all.
    """
    attention = _last_attention(model)
    if attention is None:
        yield False
        return
    early = first and _can_ask_first(attention.self)

    def narrow(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        context, residual = inputs  # (1, T, H) each, or the context (1, N, H) already
        if not early:
            speaking.give()
            context = context.index_select(1, speaking.rows)
        return context, residual.index_select(1, speaking.rows)  # (1, N, H) each

    original = attention.self
    hook = attention.output.register_forward_pre_hook(narrow)
    try:
        if early:
            attention.self = FirstTokenAttention(original, stretches, speaking)
        yield True
    finally:
        attention.self = original
        hook.remove()


class FirstTokenAttention(nn.Module):
    """Stands in for a BERT-like self-attention of whose output only each sequence's first token is wanted.

    With one query in a sequence it is cheaper to bring the query to the hidden states than to make keys and values of
    all of them: ``q . (W_k x) = (W_k^T q) . x``, and ``sum_j p_j W_v x_j = W_v sum_j p_j x_j``. In place of three
    products of (T, H) with (H, H) there are two of (T, H) with (H, h), h being the number of heads. The key's bias adds
    the same to every score of a query, which softmax does not see.

    Args:
        original: has ``query``, ``key`` and ``value``.
        stretches: of the model.
        speaking: is read in every pass.
    """

    def __init__(self, original: Any, stretches: Stretches, speaking: Speaking) -> None:
        super().__init__()
        self.original = original
        self.stretches = stretches
        self.speaking = speaking
        if isinstance(original.query, FusedLinear):
            original.query.group = [original.query]  # key and value are not asked

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """Return what each sequence's first token gathers, (1, T, H) to (1, N, H), and no weights."""
        packing, width = current_packing(), self.original.attention_head_size
        self.speaking.give()
        query = self.original.query(hidden_states.index_select(1, self.speaking.rows))[0]  # (N, H)
        query = (
            (query * self.original.scaling).unflatten(-1, (-1, width)).transpose(0, 1)
        )  # (h, N, d)
        asked = self._through_transposed(self.original.key, query).transpose(0, 1)  # (N, h, H)
        by_block = asked.index_select(0, packing.order).split(
            [len(block.lengths) for block in packing.blocks]
        )
        gathered = []
        for key_mask, own, states in zip(
            packing.key_masks, by_block, regrouped(hidden_states[:, None], packing), strict=True
        ):
            x = states[:, 0]  # (n, L, H)
            scores = torch.bmm(own, x.transpose(1, 2))  # (n, h, L)
            if key_mask is not None:
                scores = scores + key_mask[:, 0].to(scores.dtype)
            gathered.append(torch.bmm(scores.softmax(-1).to(x.dtype), x))  # (n, h, H)
        mixed = torch.cat(gathered).index_select(0, packing.order.argsort())  # (N, h, H)
        context = self._by_head(self.original.value, mixed.transpose(0, 1), width)  # (h, N, d)
        return context.transpose(0, 1).flatten(1)[None], None

    def _through_transposed(self, layer: nn.Module, query: torch.Tensor) -> torch.Tensor:
        """Return each head's query times the head's rows of the layer's weight, (h, N, d) to (h, N, H)."""
        heads, _, width = query.shape
        weight = _frozen(layer).weight.view(heads, width, -1)  # (h, d, H)
        parts = []
        for a, bt, scaling, rows in self._trainable(layer):
            low = torch.bmm(
                query[:, rows], bt.view(-1, heads, width).permute(1, 2, 0)
            )  # (h, N_k, r)
            parts.append((low @ a).mul(scaling))  # (h, N_k, H)
        y = torch.bmm(query, weight)
        return y + torch.cat(parts, 1) if parts else y

    def _by_head(self, layer: nn.Module, mixed: torch.Tensor, width: int) -> torch.Tensor:
        """Return each head's outputs of its own input, (h, N, H) to (h, N, d)."""
        heads = mixed.shape[0]
        frozen = _frozen(layer)
        weight = frozen.weight.view(heads, width, -1)  # (h, d, H)
        parts = []
        for a, bt, scaling, rows in self._trainable(layer):
            low = mixed[:, rows] @ a.t()  # (h, N_k, r)
            parts.append(
                torch.bmm(low, bt.view(-1, heads, width).transpose(0, 1)).mul(scaling)
            )  # (h, N_k, d)
        y = torch.bmm(mixed, weight.transpose(1, 2))
        if frozen.bias is not None:
            y = y + frozen.bias.view(heads, 1, width)
        return y + torch.cat(parts, 1) if parts else y

    def _trainable(
        self, layer: nn.Module
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, float, slice]]:
        """Yield each trial's factors (r, H) and (r, H), known to autograd, its scaling and its rows."""
        if not isinstance(layer, FusedLinear):
            return
        now = self.stretches
        for trial, start, stop in zip(now.factors, now.bounds, now.bounds[1:], strict=False):
            own = trial[layer.name]
            a, bt = own.a.detach(), own.bt.detach()
            if torch.is_grad_enabled():
                for leaf, grad in ((a, own.a_grad), (bt, own.bt_grad)):
                    leaf.requires_grad_().grad = grad  # to which autograd adds in place
            yield a, bt, own.scaling, slice(start, stop)


def _last_attention(model: nn.Module) -> Any:
    """Return the last block's attention if its output layer takes attention's output and the residual as BERT's does.

    Decoders and DistilBERT add the residual in between, in code that no hook reaches.
    """
    blocks = getattr(getattr(getattr(model, "base_model", None), "encoder", None), "layer", None)
    attention = (
        getattr(blocks[-1], "attention", None) if isinstance(blocks, nn.ModuleList) else None
    )
    return (
        attention
        if type(getattr(attention, "output", None)).__name__.endswith("SelfOutput")
        else None
    )


def _can_ask_first(attention: Any) -> bool:
    """Whether `FirstTokenAttention` can stand in: BERT's code, and keys and values of plain weights."""
    return (
        type(attention).__name__ in AS_BERT
        and type(attention).__module__.startswith("transformers.models.")
        and not attention.is_causal
        and all(type(_frozen(layer)) is nn.Linear for layer in (attention.key, attention.value))
    )


def _frozen(layer: Any) -> Any:
    return layer.base if isinstance(layer, FusedLinear) else layer
