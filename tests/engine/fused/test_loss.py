"""Losses by chunks, against the logits of all tokens at once."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rankwise.engine.fused import loss
from rankwise.engine.fused.loss import (
    TokenHead,
    chunk_rows,
    frozen_token_losses,
    is_frozen,
    token_measures,
    trained_token_losses,
)
from rankwise.models.storages import StorageTracker

TOKENS, WIDTH, VOCABULARY = 23, 16, 101
HEADS = [  # scale, cap, bias
    pytest.param(1.0, None, False, id="plain"),
    pytest.param(1.0, None, True, id="bias"),
    pytest.param(0.0625, None, False, id="granite"),
    pytest.param(1.0, 3.0, False, id="gemma2"),
    pytest.param(0.7, 2.0, True, id="all"),
]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens go through the head at a time, and a half-precision head in parts of 30 rows."""
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 5 * VOCABULARY)
    monkeypatch.setattr(loss, "HEAD_ROWS", 30)


def make_layer(bias: bool, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype).requires_grad_(False)


def draw(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    states = torch.randn(TOKENS, WIDTH, dtype=torch.float64).mul(2).to(dtype).requires_grad_()
    return states, torch.randint(VOCABULARY, (TOKENS,))


def all_logits(states: torch.Tensor, layer: nn.Linear, scale: float, cap: float | None) -> Any:
    logits = scale * nn.functional.linear(states, layer.weight, layer.bias)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("scale", "cap", "bias"), HEADS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_losses_and_gradients_match_those_of_all_logits(
    scale: float, cap: float | None, bias: bool, dtype: torch.dtype, close: float
) -> None:
    layer, (states, targets) = make_layer(bias, dtype), draw(dtype)
    weights = torch.rand(TOKENS, dtype=dtype)  # trials of one pass divide by different counts
    head = TokenHead(layer, VOCABULARY, scale, cap)
    losses = frozen_token_losses(head, states, targets)
    (grad,) = torch.autograd.grad((losses * weights).sum(), states)
    expected = cross_entropy(all_logits(states, layer, scale, cap), targets, reduction="none")
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), states)
    torch.testing.assert_close(losses, expected, rtol=close, atol=close)
    torch.testing.assert_close(grad, expected_grad, rtol=close, atol=close)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.skipif(not hasattr(nn.functional, "linear_cross_entropy"), reason="needs PyTorch 2.13")
def test_losses_match_pytorchs_own_by_chunks() -> None:
    layer, (states, targets) = make_layer(bias=False), draw()
    loss_sum = frozen_token_losses(TokenHead(layer, VOCABULARY), states, targets).sum()
    (grad,) = torch.autograd.grad(loss_sum, states)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=4, chunking_method=None)
    expected = nn.functional.linear_cross_entropy(
        states, layer.weight, targets, reduction="sum", options=options
    )
    (expected_grad,) = torch.autograd.grad(expected, states)
    torch.testing.assert_close(loss_sum, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("scale", "cap", "bias"), HEADS)
def test_a_head_in_half_precision_rounds_neither_logits_nor_losses(
    scale: float, cap: float | None, bias: bool, dtype: torch.dtype
) -> None:
    layer, (states, targets) = make_layer(bias, dtype), draw(dtype)
    head = TokenHead(layer, VOCABULARY, scale, cap)
    losses = frozen_token_losses(head, states, targets)
    (grad,) = torch.autograd.grad(losses.sum() / 3, states)  # a count that half precision rounds
    exact = copy.deepcopy(layer).double()  # the rounded weights, without further rounding
    wide = states.detach().double().requires_grad_()
    expected = cross_entropy(all_logits(wide, exact, scale, cap), targets, reduction="none")
    (expected_grad,) = torch.autograd.grad(expected.sum() / 3, wide)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    assert grad.dtype == dtype
    torch.testing.assert_close(
        grad, expected_grad.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7
    )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("scale", "cap", "bias"), HEADS)
def test_measures_are_the_losses_and_the_likeliest_tokens(
    scale: float, cap: float | None, bias: bool
) -> None:
    layer, (states, targets) = make_layer(bias), draw()
    logits = all_logits(states.detach(), layer, scale, cap)
    targets[::2] = logits.argmax(-1)[::2]
    losses, is_correct = token_measures(
        TokenHead(layer, VOCABULARY, scale, cap), states.detach(), targets
    )
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, cross_entropy(logits, targets, reduction="none"))
    assert is_correct.tolist() == (logits.argmax(-1) == targets).tolist()
    assert 0 < int(is_correct.sum()) < TOKENS


@pytest.mark.usefixtures("small_chunks")
def test_gradients_reach_a_head_that_is_trained() -> None:
    layer, (states, targets) = make_layer(bias=True).requires_grad_(), draw()
    assert not is_frozen(layer)
    runs: list[int] = []

    def again(function: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
        runs.append(len(inputs[0]))
        return function(*inputs)

    head = TokenHead(layer, VOCABULARY, 0.7, 2.0)
    losses = trained_token_losses(lambda chunk: head, states, targets, again)
    grads = torch.autograd.grad(losses.sum(), [states, layer.weight, layer.bias])
    expected = cross_entropy(all_logits(states, layer, 0.7, 2.0), targets, reduction="none")
    expected_grads = torch.autograd.grad(expected.sum(), [states, layer.weight, layer.bias])
    assert runs == [5, 5, 5, 5, 3]
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(grads, expected_grads)


class LargestTensor(StorageTracker):
    """Keeps the size of the largest storage."""

    bytes = 0

    def allocated(self, tensor: torch.Tensor) -> None:
        self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())

    def freed(self, number: int) -> None:
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_holds_the_logits_of_more_tokens_than_a_chunk(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    tokens, outputs = 512, 3000
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 64 * outputs)
    layer = nn.Linear(WIDTH, outputs, bias=False).to(dtype).requires_grad_(False)
    states = torch.randn(tokens, WIDTH).to(dtype).requires_grad_()
    targets = torch.randint(outputs, (tokens,))
    head, largest = TokenHead(layer, outputs), LargestTensor()
    with largest.tracking():
        frozen_token_losses(head, states, targets).sum().backward()
        token_measures(head, states.detach(), targets)
    assert largest.bytes == 64 * outputs * 4  # a chunk's logits in fp32
    assert states.grad is not None


def test_a_chunk_has_at_least_one_token() -> None:
    assert chunk_rows(2**30, "cpu") == 1
    assert chunk_rows(2**16, "cuda") > chunk_rows(2**16, "cpu")


def test_no_token_has_no_loss() -> None:
    layer = make_layer(bias=False)
    states = torch.empty(0, WIDTH, dtype=torch.float64, requires_grad=True)
    losses = frozen_token_losses(TokenHead(layer, VOCABULARY), states, torch.empty(0).long())
    losses.sum().backward()
    assert losses.shape == (0,)
