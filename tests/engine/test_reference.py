import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, training_args

from rankwise.engine.adapter_init import attach_adapter, saved_modules
from rankwise.engine.batches import epoch_batches
from rankwise.engine.config import TrainingConfig
from rankwise.engine.reference import ReferenceEngine, score_adapter
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.models.base_model import BaseModel, load_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.base import Task
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from tests.conftest import make_reviews, save_tokenizer

CONFIG = TrainingConfig(epochs=2, batch_size=8)
TRIAL = Trial(rank=4, seed=3, learning_rate=5e-3, lora_alpha=4)


def engine_for(model: Path, task: Task, recipe: TrainingConfig = CONFIG) -> ReferenceEngine:
    base = load_base(str(model), task.objective, ["all-linear"], [4])
    train, held_out = (
        encode(part, base.tokenizer, base.max_length)[0] for part in (task.train, task.held_out)
    )
    return ReferenceEngine(base, train, held_out, recipe)


@pytest.fixture
def task(reviews: Path) -> Task:
    return load_task(SweepConfig(data=reviews))


def train_one(engine: ReferenceEngine, trial: Trial = TRIAL) -> FinishedTrial:
    return next(iter(engine.train([trial])))


def test_losses_match_a_plain_training_loop(tiny_model: Path, task: Task) -> None:
    """The loop has PEFT, AdamW, clipping, linear warm-up and decay, and the same batches."""
    engine = engine_for(tiny_model, task)
    finished = train_one(engine)
    base, examples = engine.base, engine.examples
    initial = attach_adapter(engine.base, TRIAL, saved_modules(engine.base)).state_dict()
    second_base = load_base(base.name, task.objective, ["all-linear"], [4])
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=4,
        lora_alpha=4,
        target_modules="all-linear",
        modules_to_save=["classifier"],
    )
    model = get_peft_model(second_base.model, config)
    model.load_state_dict(initial)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=TRIAL.learning_rate, weight_decay=0.0)
    batches = [
        b for epoch in range(2) for b in epoch_batches(examples.lengths, 8, TRIAL.seed, epoch)
    ]
    warmup = math.ceil(0.3 * len(batches))
    for step, (batch, row) in enumerate(zip(batches, finished.steps, strict=True)):
        share = step / warmup if step < warmup else (len(batches) - step) / (len(batches) - warmup)
        optimizer.param_groups[0]["lr"] = TRIAL.learning_rate * share
        optimizer.zero_grad()
        total = torch.zeros(())
        for example in batch:  # one at a time, so without padding
            logits = model(input_ids=torch.tensor([examples.input_ids[example]])).logits
            total = total + torch.nn.functional.cross_entropy(
                logits, torch.tensor([examples.labels[example]])
            )
        loss = total / len(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, CONFIG.max_grad_norm)
        optimizer.step()
        assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-4), step
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3), step
    assert len(finished.steps) == len(batches)


def test_a_base_on_the_cpu_trains_there_despite_an_apple_gpu(
    tiny_model: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_for(tiny_model, task)
    monkeypatch.setattr(training_args, "is_torch_mps_available", lambda: True)
    assert engine._arguments(TRIAL, str(tmp_path)).device.type == "cpu"


def test_a_trial_does_not_depend_on_earlier_trials(tiny_model: Path, task: Task) -> None:
    other = Trial(rank=2, seed=5, learning_rate=1e-2, lora_alpha=2)
    alone = train_one(engine_for(tiny_model, task))
    engine = engine_for(tiny_model, task)
    _, after, again = engine.train([other, TRIAL, TRIAL])
    for finished in (after, again):
        assert finished.steps == alone.steps
        assert finished.evidence.equals(alone.evidence)
        assert all(
            torch.equal(finished.adapter[key], value) for key, value in alone.adapter.items()
        )


def test_the_seed_sets_head_and_adapter(tiny_model: Path, task: Task) -> None:
    engine = engine_for(tiny_model, task)
    states: list[dict[str, torch.Tensor]] = []
    for seed in (0, 0, 1):
        trial = Trial(rank=4, seed=seed, learning_rate=1e-3, lora_alpha=4)
        model = attach_adapter(engine.base, trial, saved_modules(engine.base))
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        model.unload()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])
    drawn = [key for key in states[0] if "lora_A" in key or "modules_to_save.default.weight" in key]
    assert len(drawn) == 2 * 6 + 1 + 1  # six linear layers a block, the pooler, and the head
    assert all(not torch.equal(states[0][key], states[2][key]) for key in drawn)
    assert all(not states[0][key].any() for key in states[0] if "lora_B" in key)


def test_it_learns_and_the_base_stays_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    make_reviews(600).to_csv(tmp_path / "more.csv", index=False)
    engine = engine_for(
        tiny_model,
        load_task(SweepConfig(data=tmp_path / "more.csv")),
        TrainingConfig(epochs=4, batch_size=8),
    )
    before = {
        key: value.clone()
        for key, value in engine.base.model.state_dict().items()
        if "classifier" not in key
    }
    finished = train_one(engine, Trial(rank=4, seed=0, learning_rate=2e-2, lora_alpha=4))
    guessing = math.sqrt(0.25 / len(finished.evidence))  # standard error of a coin's score
    assert finished.evidence["score"].mean() > 0.5 + 5 * guessing
    assert all(
        torch.equal(engine.base.model.state_dict()[key], value) for key, value in before.items()
    )


def test_parameters_memory_time_and_progress_are_reported(tiny_model: Path, task: Task) -> None:
    shares: list[float] = []
    engine = engine_for(tiny_model, task)
    engine.on_work = shares.append
    finished = train_one(engine)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    peft = get_peft_model(
        base, LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules="all-linear")
    )
    assert finished.trainable_params == peft.get_nb_trainable_parameters()[0]
    assert sum(shares) == pytest.approx(1.0)
    assert finished.train_seconds > 0
    # weights, gradients and two moments of what is trained, all in fp32, are there at the step
    weights = 4 * sum(value.numel() for value in base.parameters())
    assert finished.peak_memory_bytes > weights + 12 * finished.trainable_params


def test_a_trial_that_diverges_is_recorded_and_the_next_one_runs(
    tiny_model: Path, task: Task
) -> None:
    engine = engine_for(tiny_model, task)
    wild = Trial(rank=4, seed=0, learning_rate=1e30, lora_alpha=4)
    diverged, fine = engine.train([wild, TRIAL])
    assert diverged.diverged
    assert diverged.evidence.empty
    assert len(diverged.steps) < engine.total_steps
    assert not fine.diverged
    assert fine.steps == train_one(engine_for(tiny_model, task)).steps


def bert_without_pooler(directory: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertModel(
        BertConfig(vocab_size=save_tokenizer(directory), intermediate_size=32, **sizes)
    )
    model.save_pretrained(directory)
    weights = {key: value for key, value in model.state_dict().items() if "pooler" not in key}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def from_config(model_type: str, **sizes: Any) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        config = AutoConfig.for_model(model_type, vocab_size=save_tokenizer(directory), **sizes)
        AutoModel.from_config(config).save_pretrained(directory)

    return build


DECODER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "bert-without-pooler": bert_without_pooler,
    "roberta": from_config("roberta", pad_token_id=0, intermediate_size=32, hidden_size=16,
                           num_hidden_layers=1, num_attention_heads=2),
    "distilbert": from_config("distilbert", dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "gpt2": from_config("gpt2", n_embd=16, n_layer=2, n_head=2),
    "llama": from_config("llama", **DECODER),
    "qwen2": from_config("qwen2", **DECODER),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_adapter_scores_the_same_in_peft(name: str, tmp_path: Path) -> None:
    """Train, save, and load as a user would, on a newly loaded base, without rankwise."""
    data = tmp_path / "data.csv"
    make_reviews(60).to_csv(data, index=False)
    task = load_task(SweepConfig(data=data))
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    ARCHITECTURES[name](tmp_path / "model")
    engine = engine_for(tmp_path / "model", task)
    finished = train_one(
        engine, Trial(rank=4, seed=1, learning_rate=1e-2, lora_alpha=8, use_rslora=True)
    )
    adapter = tmp_path / "adapter"
    save(finished, adapter)
    torch.manual_seed(99)  # the head drawn at loading must not matter
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    base.config.pad_token_id = engine.base.model.config.pad_token_id
    model = PeftModel.from_pretrained(base, adapter).eval()
    held_out = engine.held_out
    with torch.no_grad():
        logits = [
            model(input_ids=torch.tensor([tokens])).logits[0].double()
            for tokens in held_out.input_ids
        ]
    losses = [
        -torch.log_softmax(row, 0)[label].item()
        for row, label in zip(logits, held_out.labels, strict=True)
    ]
    np.testing.assert_allclose(finished.evidence["loss"], losses, rtol=1e-4)
    table = score_adapter(engine.base, adapter, held_out)
    np.testing.assert_allclose(table["loss"], finished.evidence["loss"], rtol=1e-6)
    assert isinstance(engine.base, BaseModel)


def save(finished: FinishedTrial, directory: Path) -> None:
    import json

    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(finished.adapter_config))
    save_file(finished.adapter, directory / "adapter_model.safetensors", metadata={"format": "pt"})
