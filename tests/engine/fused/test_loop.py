"""The training loop: gradients against PEFT's, and passes of limited length."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from rankwise.engine.adapter_init import attach_adapter, saved_modules
from rankwise.engine.fused.loop import TrainingLoop
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.training_state import TrainingState
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded
from tests.engine.parity import CONFIG, TRIALS, Tiny, every_architecture
from tests.tiny_models import load_tiny


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    name = getattr(request, "param", "bert")
    return load_tiny(name, tmp_path_factory.mktemp(name))


@every_architecture
def test_gradients_match_peft(tiny: Tiny) -> None:
    assert_gradients_match_peft(*tiny)


def test_gradients_match_peft_without_an_adapter_on_keys(tmp_path: Path) -> None:
    assert_gradients_match_peft(*load_tiny("bert", tmp_path, targets=["query", "value"]))


def assert_gradients_match_peft(base: BaseModel, train: Encoded, _: Encoded) -> None:
    """In float64, on a batch of very different lengths."""
    by_length = sorted(range(len(train)), key=train.lengths.__getitem__)
    batch = [
        by_length[0],
        by_length[-1],
        by_length[5],
        by_length[len(by_length) // 2],
        by_length[-2],
    ]
    base.model.double()
    try:
        saved = saved_modules(base)
        loop = TrainingLoop(base, train, on_step=lambda state: None)
        state = TrainingState(TRIALS[1], base, saved, CONFIG, train)
        state.flat.copy_(
            torch.randn(state.flat.shape, dtype=torch.float64) * 0.1
        )  # B is 0 in an untrained adapter
        parameters = state.adapter()
        with packed_model(base) as model:
            (loss,) = loop.forward_backward(model, [state], [batch])
        state.flat.copy_(state.flat.grad)  # so that the names are those of the adapter
        ours = state.adapter()

        model = attach_adapter(base, TRIALS[1], saved)
        set_peft_model_state_dict(model, parameters)
        expected = 0.0
        for row in batch:  # one at a time: Gemma 2 gives NaN for a padded batch in float64
            output = model(
                input_ids=torch.tensor([train.input_ids[row]]),
                labels=torch.tensor([train.labels[row]]),
            )
            (output.loss / len(batch)).backward()
            expected += output.loss.item() / len(batch)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.grad
        theirs = get_peft_model_state_dict(model)
        model.unload()
    finally:
        base.model.float()
    # transformers computes Gemma 2's softmax in float32; test_attention.py checks ours in float64.
    tolerance = 1e-5 if base.model.config.model_type == "gemma2" else 1e-10
    assert float(loss) == pytest.approx(expected, rel=tolerance)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert float(theirs[key].abs().max()) > 1e-8, key  # a zero gradient would prove nothing
        torch.testing.assert_close(value, theirs[key], rtol=0.0, atol=tolerance)
