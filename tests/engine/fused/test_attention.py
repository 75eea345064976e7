"""Choice of an attention kernel, and what `varlen_attn` is given, against the plain formula."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankwise.engine.fused import attention
from rankwise.engine.fused.attention import check_attention, packed_attention, varlen_function
from rankwise.engine.fused.attention_blocks import Rule
from rankwise.engine.fused.packing import Packing, packed
from rankwise.errors import RequestError
from tests.engine.fused import stand_ins
from tests.engine.fused.stand_ins import by_formula

LENGTHS = [3, 11, 5, 1, 30]
MODULE: Any = SimpleNamespace(is_causal=True)


def heads(width: int = 8, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Any]:
    torch.manual_seed(0)
    shapes = [(1, count, sum(LENGTHS), width) for count in (4, 2, 2)]
    return [
        torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_()
        for shape in shapes
    ]


def attend(kernel: Any, tensors: list[Any], **options: Any) -> Any:
    with packed(Packing([[0] * length for length in LENGTHS], tensors[0].device)):
        query, key, value = tensors
        return packed_attention(kernel, MODULE, query, key, value, None, 0.3, **options)[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let a loop stand in for the kernel, on a CPU in float64, and note its options."""
    noted: list[dict[str, Any]] = []

    def varlen_attn(*tensors: Any, **options: Any) -> Any:
        noted.append(options)
        return stand_ins.varlen_attn(*tensors, **options)

    monkeypatch.setattr(attention, "runs_varlen", lambda device, dtype: True)
    monkeypatch.setattr(attention, "varlen_function", lambda: varlen_attn)
    return noted


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_one_kernel_for_all_sequences_matches_the_formula(
    calls: list[dict[str, Any]], causal: bool, window: int | None
) -> None:
    tensors = heads()
    ours = attend("auto", tensors, is_causal=causal, sliding_window=window)
    expected = by_formula(*tensors, LENGTHS, Rule(causal, window, 0.3))  # type: ignore[call-arg]
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours.sin().sum(), tensors),
        torch.autograd.grad(expected.sin().sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-11)
    assert [call["enable_gqa"] for call in calls] == [True]


@pytest.mark.parametrize(
    ("kernel", "width", "options"),
    [
        ("blocks", 8, {}),
        ("auto", 8, {"softcap": 2.0}),
        ("varlen", 8, {"s_aux": torch.zeros(4, dtype=torch.float64)}),
        ("auto", 12, {}),
        ("auto", 200, {}),
        ("auto", 264, {}),
    ],
)
def test_what_the_kernel_does_not_take_goes_in_blocks(
    calls: list[dict[str, Any]], kernel: str, width: int, options: dict[str, Any]
) -> None:
    tensors = heads(width)
    ours = attend(kernel, tensors, **options)
    rule = Rule(True, None, 0.3, options.get("softcap"), options.get("s_aux"))
    expected = by_formula(*tensors, LENGTHS, rule)  # type: ignore[call-arg]
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-12)
    assert not calls


def test_a_kernel_that_the_device_lacks_is_refused_in_one_line() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(RequestError, match=r"varlen.*not cpu in float32; take auto or blocks"):
        check_attention("varlen", cpu, torch.float32)
    check_attention("auto", cpu, torch.float32)
    check_attention("blocks", cpu, torch.float32)


def test_older_versions_of_the_kernel_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.10 has it without a scale, windows and grouped heads."""
    from torch.nn.attention import varlen

    def old(query: Any, key: Any, value: Any, is_causal: bool = False) -> None: ...

    varlen_function.cache_clear()
    monkeypatch.setattr(varlen, "varlen_attn", old)
    assert varlen_function() is None
    varlen_function.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernel_gives_what_blocks_give(window: int | None) -> None:
    """In bf16 each rounds its inputs alike; sums of 30 terms differ by a few parts in 256."""
    tensors = heads(64, torch.bfloat16, "cuda")
    check_attention("varlen", torch.device("cuda"), torch.bfloat16)
    results = []
    for kernel in ("varlen", "blocks"):
        output = attend(kernel, tensors, sliding_window=window)
        results.append([output, *torch.autograd.grad(output.float().sin().sum(), tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2**-5, atol=2**-5)
