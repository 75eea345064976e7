from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.fused.model import PackedModel, packed_model, unsupported_reason
from rankwise.engine.fused.training_state import TrainingState
from rankwise.errors import RankwiseError
from rankwise.models.base_model import Loading, load_base
from tests.engine.fused.stand_ins import grouped_mm
from tests.engine.parity import CONFIG, TRIALS, Tiny, assert_logits_in_fp32
from tests.tiny_models import load_tiny, load_tiny_lm, save_tiny_lm


@pytest.mark.parametrize("tiny", ["bert", "llama", "gemma2"], indirect=True)
def test_other_sequences_in_a_pass_do_not_change_logits(tiny: Tiny) -> None:
    base, train, _ = tiny
    state, other_state = (
        TrainingState(trial, base, saved_modules(base), CONFIG, train) for trial in TRIALS[:2]
    )
    for seed, one in enumerate((state, other_state)):  # B is 0 in an untrained adapter
        torch.manual_seed(seed)
        one.flat.add_(torch.randn_like(one.flat) * 0.05)
    part = train.take(range(24))
    with torch.inference_mode(), packed_model(base) as model:
        (together,) = model.logits([state], [part])
        one_by_one = torch.cat([model.logits([state], [part.take([row])])[0] for row in range(24)])
        backwards = model.logits([state], [part.take(range(23, -1, -1))])[0].flip(0)
        with_others = model.logits([other_state, state], [train.take(range(30, 37)), part])[1]
    for other in (one_by_one, backwards, with_others):
        torch.testing.assert_close(other, together, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("tiny", ["bert", "llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("products", ["masked", "grouped"])
def test_stacked_products_give_the_gradients_of_the_loop(
    tiny: Tiny, products: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, over two passes of a step; the second is without the trial in the middle."""
    monkeypatch.setattr("rankwise.engine.fused.products.grouped_mm", grouped_mm)
    base, train, _ = tiny
    base.model.double()
    try:
        states = [
            TrainingState(trial, base, saved_modules(base), CONFIG, train) for trial in TRIALS
        ]
        torch.manual_seed(0)
        for state in states:  # B is 0 in an untrained adapter
            state.flat.copy_(torch.randn_like(state.flat) * 0.1)
        gradients: dict[str, list[Any]] = {}
        for name in ("loop", products):
            with packed_model(base, products=name) as model:
                model.begin_step(states)
                for part, rows in ((states, [[0, 1], [2], [3, 4, 5]]), (states[::2], [[6], [7]])):
                    batches = [train.take(each) for each in rows]
                    model.loss_sums(part, batches).sum().backward()
                model.end_step()
            gradients[name] = [state.flat.grad.clone() for state in states]
            for state in states:
                state.flat.grad.zero_()
    finally:
        base.model.float()
    for ours, expected in zip(gradients[products], gradients["loop"], strict=True):
        assert float(expected.abs().max()) > 1e-6
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("products", ["masked", "grouped"])
def test_stacked_products_in_bf16_differ_from_the_loop_by_rounding(
    name: str, products: Any, tmp_path: Path
) -> None:
    """Copies, low activations and gradients are each rounded to 8 bits once more, or once less."""
    base, train, _ = load_tiny(name, tmp_path, loading=Loading(precision="bf16"))
    states = [TrainingState(trial, base, saved_modules(base), CONFIG, train) for trial in TRIALS]
    torch.manual_seed(0)
    for state in states:  # B is 0 in an untrained adapter
        state.flat.add_(torch.randn_like(state.flat) * 0.05)
    gradients: dict[str, torch.Tensor] = {}
    for how in ("loop", products):
        with packed_model(base, products=how) as model:
            model.begin_step(states)
            batches = [train.take(rows) for rows in ([0, 1], [2], [3, 4, 5])]
            model.loss_sums(states, batches).sum().backward()
            model.end_step()
        gradients[how] = torch.cat([state.gradient.clone() for state in states])
        for state in states:
            state.gradient.zero_()
    error = (gradients[products] - gradients["loop"]).norm() / gradients["loop"].norm()
    assert 0 < float(error) < 4 * 2**-8


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_base_in_bf16_has_logits_in_fp32(name: str, tmp_path: Path) -> None:
    base, _, held_out = load_tiny(name, tmp_path, loading=Loading("cpu", "bf16"))
    head = base.model.score if hasattr(base.model, "score") else base.model.classifier
    assert_logits_in_fp32(base, held_out, head)


@pytest.mark.parametrize(
    ("name", "reason"), [("deberta-v2", "pooler"), ("mpnet", "MPNetForSequenceClassification")]
)
def test_a_base_that_cannot_run_packed_is_named_with_the_reason(
    name: str, reason: str, tmp_path: Path
) -> None:
    base, train, _ = load_tiny(name, tmp_path)
    reason_given = unsupported_reason(base, train)
    assert reason_given is not None
    assert reason in reason_given
    assert "\n" not in reason_given


def test_a_device_too_small_for_the_check_is_no_reason_for_the_other_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, train, _ = load_tiny("bert", tmp_path)

    def too_much(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(PackedModel, "logits", too_much)
    with pytest.raises(RankwiseError, match=r"a pass of two examples of up to .* does not fit"):
        unsupported_reason(base, train)


@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "qwen3_moe"])
def test_tokens_that_choose_their_experts_run_packed(name: str, tmp_path: Path) -> None:
    base, train, _ = load_tiny_lm(name, tmp_path)
    chooses = save_tiny_lm(name, tmp_path, num_experts_per_tok=2)
    base = load_base(str(chooses), base.objective, ["all-linear"], [4])
    assert base.model.config.num_experts_per_tok == 2
    assert unsupported_reason(base, train) is None
