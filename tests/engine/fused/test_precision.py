"""Training in half precision against fp32, within what rounding may do.

`rankwise.engine.fused.model.rounding` is the share of the largest logit by which rounding may move
logits. A loss is at most twice as far off: it is a logit less a mean of logits, softened.
"""

import math
from pathlib import Path

import pytest
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.evaluate import padded_logits
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import packed_model, rounding, unsupported_reason
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.reference import ReferenceEngine
from rankwise.errors import RequestError
from rankwise.models.base_model import Loading
from tests.engine.parity import CONFIG, STEPS, TRIALS, Tiny, figures
from tests.tiny_models import load_tiny, load_tiny_lm

HALF = [
    Loading("cpu", "bf16"),
    Loading("cpu", "fp16"),
    pytest.param(Loading("cuda", "bf16"), marks=pytest.mark.gpu),
    pytest.param(Loading("cuda", "fp16"), marks=pytest.mark.gpu),
]
MODELS = [
    ("bert", False),
    ("llama", True),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in [
            ("modernbert", False),
            ("gpt2", False),
            ("qwen3", False),
            ("gemma2", False),
            ("gemma2", True),
            ("qwen2", True),
        ]
    ),
]


def load(name: str, directory: Path, loading: Loading, writes: bool) -> Tiny:
    """Load a tiny model; it has the same weights in every precision, and the same examples."""
    if writes:
        return load_tiny_lm(name, directory, loading=loading)
    return load_tiny(name, directory, loading=loading)


def largest_logit(tiny: Tiny) -> float:
    base, _, held_out = tiny
    with torch.inference_mode():
        return float(padded_logits(base.model, base.tokenizer, held_out).abs().max())


@pytest.mark.parametrize("loading", HALF, ids=str)
@pytest.mark.parametrize(("name", "writes"), MODELS)
def test_half_precision_trains_as_fp32_up_to_rounding(
    name: str, writes: bool, loading: Loading, tmp_path: Path
) -> None:
    exact = load(name, tmp_path, Loading("cpu", "fp32"), writes)
    rough = load(name, tmp_path, loading, writes)
    dtype = torch.bfloat16 if loading.precision == "bf16" else torch.float16
    assert rough[0].compute_dtype == dtype
    assert unsupported_reason(rough[0], rough[1]) is None
    bound = 2 * rounding(rough[0]) * largest_logit(exact)
    trials = TRIALS[:2]
    expected, results = (
        list(FusedEngine(base, train, held_out, CONFIG, pack_size=2).train(trials))
        for base, train, held_out in (exact, rough)
    )
    for one, other in zip(results, expected, strict=True):
        assert len(one.steps) == len(other.steps) == STEPS
        norms = figures(one, "grad_norm")
        skipped = [row for row, norm in enumerate(norms) if not math.isfinite(norm)]
        assert not (skipped and loading.precision == "bf16")
        same = slice(skipped[0] + 1 if skipped else STEPS)  # then fp16 is a step behind
        losses, expected_losses = figures(one, "train_loss"), figures(other, "train_loss")
        assert losses != expected_losses
        assert losses[same] == pytest.approx(expected_losses[same], abs=bound)
        if not skipped:
            evidence = list(other.evidence["loss"])
            assert list(one.evidence["loss"]) == pytest.approx(evidence, abs=bound)
        assert not one.diverged
        assert {value.dtype for value in one.adapter.values()} == {torch.float32}


@pytest.mark.parametrize("loading", HALF[:1] + HALF[2:3], ids=str)
def test_frozen_weights_are_stored_once_in_half_precision(loading: Loading, tmp_path: Path) -> None:
    """The head alone is in fp32, because it is trained."""
    base, train, _ = load_tiny("bert", tmp_path, loading=loading)
    types = {name: value.dtype for name, value in base.model.named_parameters()}
    in_fp32 = {name for name, dtype in types.items() if dtype == torch.float32}
    assert in_fp32 == {"classifier.weight", "classifier.bias"}
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    state = TrainingState(TRIALS[0], base, saved_modules(base), CONFIG, train)
    assert state.flat.dtype == torch.float32


@pytest.mark.parametrize("loading", HALF[:1] + HALF[2:3], ids=str)
def test_a_gradient_in_bf16_is_that_of_fp32_up_to_rounding(
    loading: Loading, tmp_path: Path
) -> None:
    """As a whole: single entries may be smaller than the rounding of the terms they sum."""
    gradients = []
    for each in (Loading("cpu", "fp32"), loading):
        base, train, held_out = load_tiny("llama", tmp_path, loading=each)
        state = TrainingState(TRIALS[0], base, saved_modules(base), CONFIG, train)
        torch.manual_seed(0)  # B is 0 in an untrained adapter
        state.flat.add_((torch.randn(len(state.flat)) * 0.05).to(state.flat.device))
        with packed_model(base) as model:
            loop = FusedEngine(base, train, held_out, CONFIG).loop
            loop.forward_backward(model, [state], [range(8)])
        gradients.append(state.gradient.cpu())
    exact, rough = gradients
    # Backwards there are as many roundings again.
    assert float((rough - exact).norm()) <= 2 * rounding(base) * float(exact.norm())


@pytest.mark.parametrize("loading", HALF[:1] + HALF[2:], ids=str)
@pytest.mark.parametrize(("name", "writes"), [("bert", False), ("llama", True)])
def test_both_engines_agree_in_half_precision(
    name: str, writes: bool, loading: Loading, tmp_path: Path
) -> None:
    tiny = base, train, held_out = load(name, tmp_path, loading, writes)
    bound = 2 * rounding(base) * largest_logit(tiny)
    (ours,) = FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:1])
    (theirs,) = ReferenceEngine(base, train, held_out, CONFIG).train(TRIALS[:1])
    assert figures(ours, "train_loss") == pytest.approx(figures(theirs, "train_loss"), abs=bound)
    assert list(ours.evidence["loss"]) == pytest.approx(list(theirs.evidence["loss"]), abs=bound)
    assert {value.dtype for value in theirs.adapter.values()} == {torch.float32}


def test_the_reference_engine_refuses_fp16_without_cuda(tmp_path: Path) -> None:
    base, train, held_out = load_tiny("bert", tmp_path, loading=Loading("cpu", "fp16"))
    with pytest.raises(
        RequestError, match=r"^precision 'fp16' on cpu needs the fused engine; take"
    ):
        ReferenceEngine(base, train, held_out, CONFIG)
