"""LoRA+, DoRA and initial values, in both engines and with PEFT on the unchanged base."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from rankwise.engine.adapter_init import attach_adapter, attaching, saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.loop import TrainingLoop
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.reference import ReferenceEngine
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter
from rankwise.lora.files import write_adapter
from rankwise.lora.spectra import spectrum
from rankwise.lora.truncation import truncate
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries
from rankwise.tasks.base import Encoded
from tests.engine.parity import adapter_gradients, assert_same_training
from tests.tiny_models import load_tiny

CONFIG = TrainingConfig(epochs=1, batch_size=8, max_steps=20)
TRIAL = Trial(rank=4, seed=3, learning_rate=1e-3, lora_alpha=6)
Tiny = tuple[BaseModel, Encoded, Encoded]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return load_tiny("bert", tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(
    "changes",
    [
        {"loraplus_ratio": 16.0},
        {"init": "gaussian"},
        {"init": "orthogonal"},
        {"lr_scheduler": "cosine", "warmup_ratio": 0.1, "max_grad_norm": 0.1},
        {"lr_scheduler": "constant", "warmup_ratio": 0.0, "max_steps": 60},
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "loraplus_ratio": 4.0},
    ],
    ids=str,
)
def test_both_engines_train_alike(tiny: Tiny, changes: dict[str, object]) -> None:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    (fused,) = FusedEngine(*tiny, config).train([TRIAL])
    (reference,) = ReferenceEngine(*tiny, config).train([TRIAL])
    (plain,) = FusedEngine(*tiny, CONFIG).train([TRIAL])
    assert_same_training(fused, reference)
    assert fused.steps != plain.steps
    for key, value in fused.adapter.items():
        torch.testing.assert_close(value, reference.adapter[key], rtol=1e-3, atol=1e-5)


def test_both_engines_save_the_same_config(tiny: Tiny) -> None:
    config = replace(CONFIG, lora_dropout=0.1, max_steps=2)
    (fused,) = FusedEngine(*tiny, config).train([TRIAL])
    (reference,) = ReferenceEngine(*tiny, config).train([TRIAL])
    assert fused.adapter_config == reference.adapter_config
    assert fused.adapter_config["lora_dropout"] == 0.1


def held_out_losses(
    finished: FinishedTrial, base: BaseModel, held_out: Encoded, directory: Path
) -> list[float]:
    """Score the saved adapter on the checkpoint on disk, with PEFT alone."""
    save_file(finished.adapter, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(finished.adapter_config))
    plain = AutoModelForSequenceClassification.from_pretrained(
        base.name, num_labels=2, dtype=torch.float32
    )
    model = PeftModel.from_pretrained(plain, directory).eval()
    losses = []
    with torch.inference_mode():
        for tokens, label in zip(held_out.input_ids, held_out.labels, strict=True):
            logits = model(input_ids=torch.tensor([tokens])).logits[0].double()
            losses.append(-torch.log_softmax(logits, 0)[label].item())
    return losses


@pytest.mark.parametrize(
    ("changes", "rank_on_disk"),
    [({"init": "pissa"}, 8), ({"init": "olora"}, 8), ({"init": "eva"}, 4), ({"use_dora": True}, 4)],
    ids=str,
)
def test_the_saved_adapter_fits_the_base_on_disk(
    tiny: Tiny, changes: dict[str, object], rank_on_disk: int, tmp_path: Path
) -> None:
    base, train, held_out = tiny
    before = {
        key: value.clone()
        for key, value in base.model.state_dict().items()
        if "classifier" not in key
    }
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    engine = ReferenceEngine(base, train, held_out, config)
    first, again = engine.train([TRIAL, replace(TRIAL, use_rslora=True)])
    assert all(torch.equal(base.model.state_dict()[key], value) for key, value in before.items())
    for finished in (first, again):
        assert held_out_losses(finished, base, held_out, tmp_path) == pytest.approx(
            list(finished.evidence["loss"]), rel=1e-4, abs=1e-5
        )
        assert finished.adapter_config["r"] == rank_on_disk
        assert finished.adapter_config["init_lora_weights"] is True
    (plain,) = ReferenceEngine(base, train, held_out, CONFIG).train([TRIAL])
    magnitudes = sum(d_out for _, d_out in base.targets.values()) if "use_dora" in changes else 0
    assert first.trainable_params == plain.trainable_params + magnitudes
    assert first.steps != plain.steps


def test_eva_finds_the_main_directions_of_the_inputs(tiny: Tiny) -> None:
    base, train, held_out = tiny
    engine = ReferenceEngine(base, train, held_out, replace(CONFIG, init="eva"))
    with quiet_libraries():
        model = attach_adapter(base, TRIAL, saved_modules(base), init="eva")
    try:
        engine._initialize_from_data(model, TRIAL)
        layer = model.base_model.model.bert.encoder.layer[1].intermediate.dense
        a = layer.lora_A["default"].weight.detach().double()  # (r, d_in)
        assert not layer.lora_B["default"].weight.any()
    finally:
        model.unload()
    seen: list[torch.Tensor] = []
    dense = base.model.bert.encoder.layer[1].intermediate.dense
    hook = dense.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.inference_mode():
        for tokens in train.input_ids:
            base.model(input_ids=torch.tensor([tokens]))
    hook.remove()
    inputs = torch.cat(seen).double()  # (T, d_in)
    inputs = inputs - inputs.mean(0)
    most = float((torch.linalg.svdvals(inputs)[:4] ** 2).sum())
    torch.testing.assert_close(a @ a.t(), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)
    assert float(((inputs @ a.t()) ** 2).sum()) > 0.95 * most


def test_eva_with_too_little_data_is_refused(tiny: Tiny) -> None:
    base, train, held_out = tiny
    few = Encoded(train.ids[:40], train.input_ids[:40], train.labels[:40])
    with pytest.raises(RequestError, match="'eva' at rank 4 needs at least 64 training examples"):
        list(ReferenceEngine(base, few, held_out, replace(CONFIG, init="eva")).train([TRIAL]))
    assert np.isfinite(base.model.bert.pooler.dense.weight.numpy()).all()


def test_conv1d_layers_take_pissa_and_refuse_olora(tmp_path: Path) -> None:
    base, train, held_out = load_tiny("gpt2", tmp_path)
    (finished,) = ReferenceEngine(base, train, held_out, replace(CONFIG, init="pissa")).train(
        [TRIAL]
    )
    (tmp_path / "adapter").mkdir()
    assert held_out_losses(finished, base, held_out, tmp_path / "adapter") == pytest.approx(
        list(finished.evidence["loss"]), rel=1e-4, abs=1e-5
    )
    with pytest.raises(RequestError, match="'olora' does not support GPT-2's Conv1D layers"):
        list(ReferenceEngine(base, train, held_out, replace(CONFIG, init="olora")).train([TRIAL]))


def cut_adapter(tiny: Tiny) -> Adapter:
    """Return a trained adapter of rank 8, cut to rank 4, with another scaling than a new one."""
    wide = replace(TRIAL, rank=8, lora_alpha=12, learning_rate=1e-2)
    (trained,) = FusedEngine(*tiny, CONFIG).train([wide])
    return truncate(spectrum(Adapter(trained.adapter, trained.adapter_config)), 4)


HEALED = replace(TRIAL, starts_from="cut", share_of_steps=0.1)


@pytest.mark.parametrize("kind", [FusedEngine, ReferenceEngine])
def test_training_that_changes_nothing_gives_the_adapter_it_starts_from(
    tiny: Tiny, kind: type[FusedEngine] | type[ReferenceEngine]
) -> None:
    cut = cut_adapter(tiny)
    engine = kind(*tiny, CONFIG)
    (expected,) = engine.score([cut])
    (healed,) = engine.train([replace(HEALED, learning_rate=0.0)], {"cut": cut})
    assert len(healed.steps) == 2  # a tenth of 20
    assert healed.adapter.keys() == cut.tensors.keys()
    for key, value in cut.tensors.items():
        assert torch.equal(healed.adapter[key], value)
    assert healed.adapter_config["lora_alpha"] == cut.config["lora_alpha"] == 6
    assert list(healed.evidence["loss"]) == pytest.approx(list(expected["loss"]), abs=1e-6)


def test_both_engines_train_alike_from_an_adapter(tiny: Tiny) -> None:
    cut = cut_adapter(tiny)
    trials = [HEALED, replace(HEALED, starts_from=None, share_of_steps=None)]
    packed = list(FusedEngine(*tiny, CONFIG, pack_size=2).train(trials, {"cut": cut}))
    reference = list(ReferenceEngine(*tiny, CONFIG).train(trials, {"cut": cut}))
    (plain,) = FusedEngine(*tiny, CONFIG).train(trials[1:])
    for one, other in zip(packed, reference, strict=True):
        assert_same_training(one, other)
    assert packed[1].steps == plain.steps  # a trial that starts as usual is not touched by it


def test_ranks_of_their_own_for_layers_are_trained_from(tiny: Tiny) -> None:
    trained = spectrum(cut_adapter(tiny))
    names = [layer.pair.name for layer in trained.layers]
    cut = truncate(trained, {name: 1 + place % 4 for place, name in enumerate(names)})
    (fused,) = FusedEngine(*tiny, CONFIG).train([HEALED], {"cut": cut})
    (reference,) = ReferenceEngine(*tiny, CONFIG).train([HEALED], {"cut": cut})
    assert_same_training(fused, reference)
    for key, value in cut.tensors.items():
        assert fused.adapter[key].shape == value.shape


def test_gradients_at_the_start_are_those_of_peft(tiny: Tiny, tmp_path: Path) -> None:
    base, train, _ = tiny
    cut = cut_adapter(tiny)
    state = TrainingState(HEALED, base, saved_modules(base), CONFIG, train, cut)
    rows = state.batch(0)
    with packed_model(base) as model:
        loop = TrainingLoop(base, train, Limits(1, None))
        base.model.train()
        model.begin_step([state])
        loop.forward_backward(model, [state], [rows])
        model.end_step()
    state.flat.data.copy_(state.gradient)
    gradients = state.adapter()
    write_adapter(cut, tmp_path / "cut")
    with quiet_libraries():
        peft_model = PeftModel.from_pretrained(base.model, tmp_path / "cut", is_trainable=True)
    peft_model.train()
    batch = DataCollatorWithPadding(base.tokenizer)([train.features(row) for row in rows])
    peft_model(**batch).loss.backward()
    for key, value in adapter_gradients(peft_model).items():
        torch.testing.assert_close(gradients[key], value, rtol=1e-3, atol=1e-6)


def test_an_adapter_that_does_not_fit_is_refused_as_a_start(tiny: Tiny) -> None:
    cut = cut_adapter(tiny)
    name = next(name for name in cut.tensors if "lora_A" in name)
    tensors = {key: value for key, value in cut.tensors.items() if key != name}
    with pytest.raises(RequestError, match="cannot start from the adapter") as caught:
        list(FusedEngine(*tiny, CONFIG).train([HEALED], {"cut": replace(cut, tensors=tensors)}))
    assert name in str(caught.value)
    assert not any("lora" in each for each, _ in tiny[0].model.named_modules())


def test_a_machine_out_of_memory_is_no_fault_of_the_adapter(tiny: Tiny) -> None:
    for error in (MemoryError(), OSError(errno.EMFILE, "Too many open files")):
        with pytest.raises(type(error)), attaching(tiny[0]):
            raise error
    with pytest.raises(RequestError, match="cannot be attached"), attaching(tiny[0]):
        raise KeyError("q_proj")
