"""Quantised bases: both engines, unquantised modules, and the saved adapter in plain PEFT."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from rankwise.engine.config import TrainingConfig
from rankwise.engine.evaluate import padded_logits
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import rounding, unsupported_reason
from rankwise.engine.reference import ReferenceEngine
from rankwise.engine.trial import Trial
from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter
from rankwise.models import quantization
from rankwise.models.base_model import Loading, load_base
from rankwise.models.quantization import (
    check_optimizer,
    keep_as_loaded,
    loading_arguments,
    resident_tensors,
)
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks import samples
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import ClassificationObjective
from tests.engine.parity import assert_same_training
from tests.tiny_models import load_tiny

RECIPE = TrainingConfig(epochs=1, batch_size=8)  # 50 steps
TRIALS = [
    Trial(rank=4, seed=3, learning_rate=1e-3, lora_alpha=4),
    Trial(rank=2, seed=1, learning_rate=1e-3, lora_alpha=4, use_rslora=True),
]


@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "nf4"), ("llama", "nf4"), ("llama", "nf4-dq"), ("bert", "int8")]
)
def test_both_engines_agree_and_peft_loads_the_adapter(
    name: str, kind: str, tmp_path: Path
) -> None:
    base, train, held_out = load_tiny(name, tmp_path, quantization=kind)
    layers = {type(base.model.get_submodule(target)).__name__ for target in base.targets}
    assert layers == {"Linear8bitLt" if kind == "int8" else "Linear4bit"}
    assert unsupported_reason(base, train) is None
    (expected,) = ReferenceEngine(base, train, held_out, RECIPE).train(TRIALS[:1])
    packed = list(FusedEngine(base, train, held_out, RECIPE, pack_size=2).train(TRIALS))
    assert_same_training(packed[0], expected)
    assert {value.dtype for value in packed[0].adapter.values()} == {torch.float32}

    saved = tmp_path / "adapter"
    saved.mkdir()
    save_file(packed[0].adapter, saved / "adapter_model.safetensors")
    (saved / "adapter_config.json").write_text(json.dumps(packed[0].adapter_config))
    bits = BitsAndBytesConfig(
        load_in_8bit=kind == "int8",
        load_in_4bit=kind != "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=kind == "nf4-dq",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["classifier", "score"],
    )
    plain = AutoModelForSequenceClassification.from_pretrained(
        base.name, num_labels=2, dtype=torch.float32, pad_token_id=0, quantization_config=bits
    )
    keep_as_loaded(plain)
    model = PeftModel.from_pretrained(plain, saved).eval()
    with torch.inference_mode():
        for tokens, label, loss in zip(
            held_out.input_ids, held_out.labels, packed[0].evidence["loss"], strict=True
        ):
            logits = model(input_ids=torch.tensor([tokens])).logits[0].double()
            np.testing.assert_allclose(-torch.log_softmax(logits, 0)[label].item(), loss, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "nf4"),
        ("bert", "int8"),
        pytest.param("bert", "nf4", marks=pytest.mark.slow),
        pytest.param("gemma2", "nf4", marks=pytest.mark.slow),
    ],
)
def test_training_in_bf16_is_close_to_fp32(name: str, kind: str, tmp_path: Path) -> None:
    base, train, held_out = load_tiny(name, tmp_path, quantization=kind)
    (exact,) = FusedEngine(base, train, held_out, RECIPE).train(TRIALS[:1])
    in_bf16 = Loading("cpu", "bf16")
    base, train, held_out = load_tiny(name, tmp_path, quantization=kind, loading=in_bf16)
    assert base.compute_dtype == torch.bfloat16
    assert unsupported_reason(base, train) is None
    (rough,) = FusedEngine(base, train, held_out, RECIPE).train(TRIALS[:1])
    exact_losses, losses = ([row["train_loss"] for row in one.steps] for one in (exact, rough))
    assert losses != exact_losses
    assert losses == pytest.approx(exact_losses, abs=rounding(base))
    expected = list(exact.evidence["loss"])
    assert list(rough.evidence["loss"]) == pytest.approx(expected, abs=rounding(base))
    assert all(value.dtype == torch.float32 for value in rough.adapter.values())


def test_bf16_rounding_does_not_make_the_check_for_packing_fail() -> None:
    """In bf16 the logits of one example move with the shape of its batch."""
    task = load_task(SweepConfig())
    base = load_base(
        str(samples.minilm_directory()), task.objective, ["all-linear"], [8], quantization="nf4"
    )
    layers = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.compute_dtype = torch.bfloat16
    examples = encode(task.train.take(range(40)), base.tokenizer, 128)[0]
    assert [unsupported_reason(base, examples.take([row, row + 1])) for row in range(0, 40, 8)] == [
        None
    ] * 5
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


def test_8_bit_rounding_does_not_make_the_check_for_packing_fail() -> None:
    """Rounding turns a change of 2e-7 in the embeddings into percents of 8-bit MiniLM's logits."""
    task = load_task(SweepConfig())
    base = load_base(
        str(samples.minilm_directory()), task.objective, ["all-linear"], [8], quantization="int8"
    )
    examples = encode(task.train.take(range(40)), base.tokenizer, 128)[0]
    assert [unsupported_reason(base, examples.take([row, row + 1])) for row in range(0, 40, 8)] == [
        None
    ] * 5

    base.model.eval()
    with torch.inference_mode():
        plain = padded_logits(base.model, base.tokenizer, examples)
        hook = base.model.base_model.embeddings.register_forward_hook(
            lambda *args: args[2] * (1 + 2e-7)
        )
        nudged = padded_logits(base.model, base.tokenizer, examples)
        hook.remove()
    assert (
        nudged - plain
    ).abs().max() > 0.01 * plain.abs().max()  # the layers round as before the check


@pytest.mark.slow
def test_both_engines_agree_on_an_8_bit_minilm() -> None:
    task = load_task(SweepConfig())
    base = load_base(
        str(samples.minilm_directory()), task.objective, ["all-linear"], [8], quantization="int8"
    )
    train, held_out = (
        encode(part.take(range(0, len(part), len(part) // count)), base.tokenizer, 128)[0]
        for part, count in ((task.train, 200), (task.held_out, 100))
    )
    (expected,) = ReferenceEngine(base, train, held_out, RECIPE).train(TRIALS[:1])
    packed = list(FusedEngine(base, train, held_out, RECIPE, pack_size=2).train(TRIALS))
    losses, expected_losses = (
        [row["train_loss"] for row in one.steps] for one in (packed[0], expected)
    )
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    # In eval mode inputs are rounded to 8 bits, and single logits with them.
    mean, expected_mean = (one.evidence["loss"].mean() for one in (packed[0], expected))
    assert mean == pytest.approx(expected_mean, abs=2e-3)


def test_trials_do_not_share_the_outlier_columns_of_8_bit_layers(tmp_path: Path) -> None:
    base, train, held_out = load_tiny("bert", tmp_path, quantization="int8")
    engine = FusedEngine(base, train.take(range(16)), held_out, RECIPE)
    (trained,) = engine.train(TRIALS[:1])
    usual = Adapter(trained.adapter, trained.adapter_config)
    wild = Adapter(
        {name: 1e3 * value for name, value in trained.adapter.items()}, trained.adapter_config
    )
    together, alone = engine.score([usual, wild]), engine.score([usual])
    assert together[0].equals(alone[0])


@pytest.mark.parametrize("engine", [FusedEngine, ReferenceEngine])
@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "int8"])
def test_evaluation_leaves_the_base_unchanged(
    engine: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AVX512-BF16 bitsandbytes would change the base, and with it the next trial."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    base, train, held_out = load_tiny("llama", tmp_path, quantization=kind)
    few = train.take(list(range(16)))
    trials = list(engine(base, few, held_out, RECIPE).train([TRIALS[0], TRIALS[0]]))
    assert trials[0].steps == trials[1].steps
    assert trials[0].evidence.equals(trials[1].evidence)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_4_bit_layers_compute_in_the_precision_of_the_rest(dtype: torch.dtype) -> None:
    config = loading_arguments("nf4", (), dtype)["quantization_config"]
    assert config.bnb_4bit_compute_dtype == dtype


def test_modules_missing_from_the_checkpoint_are_not_quantised(
    tiny_model: Path, tmp_path: Path
) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = {
        key: value
        for key, value in load_file(tiny_model / "model.safetensors").items()
        if "pooler" not in key
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base = load_base(
        str(tmp_path),
        ClassificationObjective(("bad", "good")),
        "all-linear",
        [4],
        quantization="nf4",
    )
    assert set(base.newly_initialized) == {"bert.pooler", "classifier"}
    for name in base.trained_in_full:
        assert all(
            value.dtype == torch.float32 for value in base.model.get_submodule(name).parameters()
        )
    quantized = {
        name for name, module in base.model.named_modules() if isinstance(module, Linear4bit)
    }
    assert quantized == set(base.targets)


def test_resident_tensors_include_the_scales(tmp_path: Path) -> None:
    base, _, _ = load_tiny("llama", tmp_path, quantization="nf4-dq")
    layer = base.model.model.layers[0].mlp.up_proj
    sizes = {id(value): value.untyped_storage().nbytes() for value in resident_tensors(layer)}
    weights = layer.in_features * layer.out_features
    scales = -(
        -weights // 64
    )  # in 8 bits, with scales of their own in fp32; two tables of codes and an offset
    assert (
        sum(sizes.values())
        == weights // 2 + scales + 4 * (-(-scales // 256)) + 4 * 16 + 4 * 256 + 4
    )


def test_a_missing_bitsandbytes_is_reported_in_one_line(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        RequestError,
        match=r"'nf4' needs the package 'bitsandbytes': pip install 'rankwise\[qlora\]'",
    ):
        load_base(
            str(tiny_model),
            ClassificationObjective(("bad", "good")),
            "all-linear",
            [4],
            quantization="nf4",
        )
    assert SweepConfig(quantization="nf4").quantization == "nf4"  # the request itself is in order


def test_an_8_bit_optimizer_needs_bitsandbytes_and_a_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, apple = torch.device("cpu"), torch.device("mps")
    check_optimizer("adamw-8bit", cpu)
    with pytest.raises(RequestError, match=r"^optimizer 'adamw-8bit' has no kernel for mps; take"):
        check_optimizer("adamw-8bit", apple)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    check_optimizer("adamw", apple)
    with pytest.raises(RequestError, match=r"^optimizer 'adamw-8bit' needs .* --optimizer adamw$"):
        check_optimizer("adamw-8bit", cpu)
