"""Heads of packed models: the pooled tokens, the last block computed for them alone, the logits.

A pooled token is one whose hidden state goes to the head: the first or last token of a sequence for
a classifier, each token whose next one is supervised for a language model. No layer after the last
block's attention looks at any other token, so in BERT-like models these layers, and most of that
attention, run on the pooled tokens alone.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from rankwise.engine.fused.attention_blocks import regrouped
from rankwise.engine.fused.linear import FusedLinear
from rankwise.engine.fused.loss import Layer, TokenHead
from rankwise.engine.fused.packing import current_packing
from rankwise.engine.fused.segments import Segments

Modules = Mapping[str, nn.Module]

LIKE_BERT = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")  # same self-attention


@dataclass(frozen=True)
class Head:
    """The layers of a classifier or causal language model after its last hidden states."""

    pooling: Literal["first", "last", "supervised"]  # tokens of a sequence that it gets
    names: tuple[str, ...]  # its modules in the model
    # From modules by name and hidden states (n, H) to logits (n, classes).
    logits: Callable[[Modules, torch.Tensor], torch.Tensor]
    # From a language model's layer that gives the logits to the head with it.
    token_head: Callable[[Layer], TokenHead] | None = None


def find_head(model: nn.Module) -> Head | None:
    """Return the head of a transformers model; None if its kind is not supported."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if isinstance(output, nn.Linear):  # causal language models
        return _language_model_head(model, output)
    if hasattr(model, "score"):  # decoders: GPT-2, Llama, Mistral, Qwen, Gemma, ...
        return Head("last", ("score",), lambda at, x: at["score"](x))
    if hasattr(model, "pre_classifier"):  # DistilBERT
        names = ("pre_classifier", "classifier")
        return Head("first", names, lambda at, x: at["classifier"](at["pre_classifier"](x).relu()))
    if getattr(getattr(model, "config", None), "classifier_pooling", None) == "cls":  # ModernBERT
        return Head("first", ("head", "classifier"), lambda at, x: at["classifier"](at["head"](x)))
    has_pooler = isinstance(getattr(getattr(model, "base_model", None), "pooler", None), nn.Module)
    if isinstance(getattr(model, "classifier", None), nn.Linear) and has_pooler:  # BERT
        pooler = f"{getattr(model, 'base_model_prefix', '')}.pooler"
        names = (pooler, "classifier")
        return Head("first", names, lambda at, x: at["classifier"](at[pooler](x[:, None])))
    if hasattr(model, "classifier"):  # RoBERTa and ELECTRA pool inside the head
        return Head("first", ("classifier",), lambda at, x: at["classifier"](x[:, None]))
    return None


def _language_model_head(model: Any, output: nn.Linear) -> Head:
    name = next(name for name, module in model.named_modules() if module is output)
    config = model.config.get_text_config()
    scale, cap = _logit_scale(config), getattr(config, "final_logit_softcapping", None)

    def token_head(layer: Layer) -> TokenHead:
        return TokenHead(layer, output.out_features, scale, cap)

    return Head("supervised", (name,), lambda at, x: token_head(at[name]).logits(x), token_head)


def _logit_scale(config: Any) -> float:
    """Return the factor that a language model gives its head's product, by its config.

    `rankwise.engine.fused.model.unsupported_reason` compares logits with the model's own.
    """
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon H1
        scale *= getattr(config, name, None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0  # Granite, MiniCPM3
    is_factor = config.model_type.startswith("hyperclovax")
    return float(scale * scaling if is_factor else scale / scaling)


class PooledTokens(threading.local):
    """The pooled tokens of the current pass, separate for each thread."""

    rows: torch.Tensor  # token rows, (N,)
    assign_segments: Callable[[], None]  # makes the model's `Segments` those of the pooled rows


@contextmanager
def last_block_for_pooled_tokens(
    model: nn.Module, segments: Segments, pooled: PooledTokens, first: bool
) -> Iterator[bool]:
    """Compute the last block of a BERT-like model for the pooled tokens only.

    If each sequence's ``first`` token is pooled, a last attention like BERT's computes the query of
    that token alone. Yields whether the last hidden states are (1, N, H), not (1, T, H).
    """
    attention = _last_attention(model)
    if attention is None:
        yield False
        return
    one_query = first and _supports_one_query(attention.self)

    def keep_pooled(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        context, residual = inputs  # (1, T, H) each; the context of one query is (1, N, H)
        if not one_query:
            pooled.assign_segments()
            context = context.index_select(1, pooled.rows)
        return context, residual.index_select(1, pooled.rows)  # (1, N, H) each

    original = attention.self
    hook = attention.output.register_forward_pre_hook(keep_pooled)
    try:
        if one_query:
            attention.self = FirstTokenAttention(original, segments, pooled)
        yield True
    finally:
        attention.self = original
        hook.remove()


class FirstTokenAttention(nn.Module):
    """Replaces BERT's self-attention where only each sequence's first token is needed.

    With one query to a sequence it is cheaper to bring the query to the hidden states than to
    compute keys and values of all of them: ``q . (W_k x) = (W_k^T q) . x``, and
    ``sum_j p_j W_v x_j = W_v sum_j p_j x_j``. In place of three products of (T, H) with (H, H)
    there are two of (T, H) with (H, h), where h is the number of heads. The bias of the key adds
    the same number to all scores of a query, which softmax ignores.
    """

    def __init__(self, original: Any, segments: Segments, pooled: PooledTokens) -> None:
        super().__init__()
        self.original = original
        self.segments = segments
        self.pooled = pooled
        if isinstance(original.query, FusedLinear):
            original.query.group = [original.query]  # key and value are not called

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """Return the context of each sequence's first token, (1, T, H) to (1, N, H)."""
        packing, width = current_packing(), self.original.attention_head_size
        self.pooled.assign_segments()
        query = self.original.query(hidden_states.index_select(1, self.pooled.rows))[0]  # (N, H)
        query = (query * self.original.scaling).unflatten(-1, (-1, width)).transpose(0, 1)
        key_query = self._key_query(self.original.key, query).transpose(0, 1)  # (N, h, H)
        counts = [block.count for block in packing.blocks]
        by_block = key_query.index_select(0, packing.order).split(counts)
        gathered = []
        for key_mask, queries, states in zip(
            packing.key_masks, by_block, regrouped(hidden_states[:, None], packing), strict=True
        ):
            x = states[:, 0]  # (n, L, H)
            scores = torch.bmm(queries, x.transpose(1, 2))  # (n, h, L)
            if key_mask is not None:
                scores = scores + key_mask[:, 0].to(scores.dtype)
            gathered.append(torch.bmm(scores.softmax(-1).to(x.dtype), x))  # (n, h, H)
        mixed = torch.cat(gathered).index_select(0, packing.order.argsort())  # (N, h, H)
        context = self._value(self.original.value, mixed.transpose(0, 1), width)  # (h, N, d)
        return context.transpose(0, 1).flatten(1)[None], None

    def _key_query(self, key: nn.Module, query: torch.Tensor) -> torch.Tensor:
        """Return ``W_k^T q`` of each head, (h, N, d) to (h, N, H)."""
        heads, _, width = query.shape
        weight = _frozen(key).weight.view(heads, width, -1)  # (h, d, H)
        parts = []
        for a, bt, scaling, rows in self._trainable(key):
            b = bt.view(-1, heads, width).permute(1, 2, 0)  # (h, d, r)
            low = torch.bmm(query[:, rows], b)  # (h, N_k, r)
            parts.append((low @ a).mul(scaling))  # (h, N_k, H)
        y = torch.bmm(query, weight)
        return y + torch.cat(parts, 1) if parts else y

    def _value(self, value: nn.Module, mixed: torch.Tensor, width: int) -> torch.Tensor:
        """Return ``W_v x + b_v`` of each head's mixed states, (h, N, H) to (h, N, d)."""
        heads, frozen = mixed.shape[0], _frozen(value)
        weight = frozen.weight.view(heads, width, -1)  # (h, d, H)
        parts = []
        for a, bt, scaling, rows in self._trainable(value):
            low = mixed[:, rows] @ a.t()  # (h, N_k, r)
            b = bt.view(-1, heads, width).transpose(0, 1)  # (h, r, d)
            parts.append(torch.bmm(low, b).mul(scaling))  # (h, N_k, d)
        y = torch.bmm(mixed, weight.transpose(1, 2))
        if frozen.bias is not None:
            y = y + frozen.bias.view(heads, 1, width)
        return y + torch.cat(parts, 1) if parts else y

    def _trainable(
        self, layer: nn.Module
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, float, slice]]:
        """Yield each trial's A and B^T, (r, H) each, its scaling and its rows."""
        if not isinstance(layer, FusedLinear):
            return
        bounds = self.segments.bounds
        for adapter, start, stop in zip(self.segments.adapters, bounds, bounds[1:], strict=False):
            factors = adapter[layer.name]
            a, bt = factors.a.detach(), factors.bt.detach()
            if torch.is_grad_enabled():
                for leaf, grad in ((a, factors.a_grad), (bt, factors.bt_grad)):
                    leaf.requires_grad_().grad = grad  # autograd adds to it in place
            dtype = _frozen(layer).weight.dtype
            yield a.to(dtype), bt.to(dtype), factors.scaling, slice(start, stop)


def _last_attention(model: nn.Module) -> Any:
    """Return the last block's attention if its output layer takes context and residual, as BERT's.

    Decoders and DistilBERT add the residual where no hook reaches it.
    """
    blocks = getattr(getattr(getattr(model, "base_model", None), "encoder", None), "layer", None)
    if not isinstance(blocks, nn.ModuleList):
        return None
    attention = getattr(blocks[-1], "attention", None)
    output = type(getattr(attention, "output", None)).__name__
    return attention if output.endswith("SelfOutput") else None


def _supports_one_query(attention: Any) -> bool:
    """Whether `FirstTokenAttention` can replace it: BERT's code, with plain keys and values."""
    return (
        type(attention).__name__ in [f"{name}SelfAttention" for name in LIKE_BERT]
        and type(attention).__module__.startswith("transformers.models.")
        and not attention.is_causal
        and all(type(_frozen(layer)) is nn.Linear for layer in (attention.key, attention.value))
    )


def _frozen(layer: Any) -> Any:
    return layer.base if isinstance(layer, FusedLinear) else layer
