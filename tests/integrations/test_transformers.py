"""The callback in three trainers, against losses computed from logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from rankwise.errors import RequestError
from rankwise.integrations.transformers import EvidenceCallback
from tests.tiny_models import make_dialogues, save_tiny_lm

SETTINGS: dict[str, Any] = {
    "max_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "report_to": "none",
    "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True,
}  # fmt: skip
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_lm("llama", tmp_path_factory.mktemp("lm")))


def written(out: Path) -> list[float]:
    lines = (out / "rankwise_evidence.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["example_id"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def expected(model: Any, ids: list[int]) -> float:
    """Return the mean log-loss of all tokens but the first."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))


def test_the_trainer_of_transformers(model: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(4, 30, (6,), generator=generator).tolist() for _ in range(7)]
    data = Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in draws])
    trainer = Trainer(
        model=get_peft_model(AutoModelForCausalLM.from_pretrained(model), LORA),
        args=TrainingArguments(output_dir=str(tmp_path), **SETTINGS),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.add_callback(EvidenceCallback(trainer))
    trainer.train()
    losses = written(tmp_path)
    assert losses == pytest.approx([expected(trainer.model, ids) for ids in draws], rel=1e-4)
    assert trainer.args.per_device_eval_batch_size == 4


def test_trl_s_sft_trainer(model: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    data = Dataset.from_list(make_dialogues(6))
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(output_dir=str(tmp_path), **SETTINGS),
        train_dataset=data,
        eval_dataset=data,
        peft_config=LORA,
    )
    trainer.add_callback(EvidenceCallback(trainer))
    trainer.train()
    ids = [list(row["input_ids"]) for row in trainer.eval_dataset]
    assert written(tmp_path) == pytest.approx(
        [expected(trainer.model, each) for each in ids], rel=1e-3
    )


def test_trl_s_dpo_trainer(model: str, tmp_path: Path) -> None:
    """Before any step every loss is log 2: the policy is the reference."""
    trl = pytest.importorskip("trl")
    words = [("the film", "was good", "was bad"), ("a story", "is fine", "is poor")]
    names = ("prompt", "chosen", "rejected")
    data = Dataset.from_list([dict(zip(names, row, strict=True)) for row in words * 2])
    settings = {**SETTINGS, "max_steps": 1, "learning_rate": 0.0}
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(output_dir=str(tmp_path), **settings),
        train_dataset=data,
        eval_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LORA,
    )
    trainer.add_callback(EvidenceCallback(trainer))
    trainer.train()
    assert written(tmp_path) == pytest.approx([0.6931] * 4, abs=1e-3)


def test_a_trainer_without_evaluation_data_is_refused(model: str, tmp_path: Path) -> None:
    data = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 4)
    trainer = Trainer(
        model=get_peft_model(AutoModelForCausalLM.from_pretrained(model), LORA),
        args=TrainingArguments(output_dir=str(tmp_path), **SETTINGS),
        train_dataset=data,
    )
    trainer.add_callback(EvidenceCallback(trainer))
    with pytest.raises(RequestError, match="needs one eval_dataset"):
        trainer.train()
    assert trainer.state.global_step == 0
