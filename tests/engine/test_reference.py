import math
from collections.abc import Callable
from dataclasses import replace
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
from rankwise.engine.evaluate import padded_logits
from rankwise.engine.fused.model import rounding
from rankwise.engine.micro_batches import MicroBatchTrainer
from rankwise.engine.reference import ReferenceEngine, _StepRecord, score_adapter
from rankwise.engine.schedule import total_steps
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.errors import RankwiseError, RequestError
from rankwise.lora.files import read_adapter
from rankwise.models.base_model import BaseModel, Loading, load_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.base import Task
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from tests.conftest import make_reviews, save_tokenizer
from tests.tiny_models import load_tiny_lm

CONFIG = TrainingConfig(epochs=2, batch_size=8, max_steps=14)  # into the second epoch
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


CHANGED = replace(
    CONFIG,
    max_steps=11,
    lr_scheduler="cosine",
    warmup_ratio=0.2,
    weight_decay=0.5,
    max_grad_norm=0.1,
)


@pytest.mark.parametrize("settings", [CONFIG, CHANGED], ids=["default", "changed"])
def test_losses_match_a_plain_training_loop(
    tiny_model: Path, task: Task, settings: TrainingConfig
) -> None:
    """The loop has PEFT, AdamW, clipping, warm-up and decay, and the same batches."""
    engine = engine_for(tiny_model, task, settings)
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
    groups = [
        {"params": [value for value in trained if value.ndim > 1]},
        {"params": [value for value in trained if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    batches = [
        b for epoch in range(2) for b in epoch_batches(examples.lengths, 8, TRIAL.seed, epoch)
    ][: settings.max_steps]
    warmup = math.ceil(settings.warmup_ratio * len(batches))
    for step, (batch, row) in enumerate(zip(batches, finished.steps, strict=True)):
        share = step / warmup if step < warmup else (len(batches) - step) / (len(batches) - warmup)
        if step >= warmup and settings.lr_scheduler == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = TRIAL.learning_rate * share
        optimizer.zero_grad()
        total = torch.zeros(())
        for example in batch:  # one at a time, so without padding
            logits = model(input_ids=torch.tensor([examples.input_ids[example]])).logits
            total = total + torch.nn.functional.cross_entropy(
                logits, torch.tensor([examples.labels[example]])
            )
        loss = total / len(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        assert row["train_loss"] == pytest.approx(loss.item(), rel=1e-4), step
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3), step
    assert len(finished.steps) == len(batches)


@pytest.mark.parametrize(
    "loading",
    [
        Loading("cpu", "bf16"),
        pytest.param(Loading("cuda", "bf16"), marks=pytest.mark.gpu),
        pytest.param(Loading("cuda", "fp16"), marks=pytest.mark.gpu),
    ],
    ids=str,
)
def test_half_precision_trains_as_fp32_up_to_rounding(loading: Loading, tmp_path: Path) -> None:
    """A loss is at most twice as far off as the logits that it is made of."""
    exact = load_tiny_lm("llama", tmp_path)
    rough = load_tiny_lm("llama", tmp_path, loading=loading)
    settings = replace(CONFIG, max_steps=8, gradient_checkpointing="on", micro_batch_tokens=64)
    with torch.inference_mode():
        logits = padded_logits(exact[0].model, exact[0].tokenizer, exact[2])
    bound = 2 * rounding(rough[0]) * float(logits.abs().max())
    trial = replace(TRIAL, learning_rate=1e-3)
    expected, finished = (
        train_one(ReferenceEngine(*tiny, settings), trial) for tiny in (exact, rough)
    )
    losses = [row["train_loss"] for row in finished.steps]
    assert losses == pytest.approx([row["train_loss"] for row in expected.steps], abs=bound)
    assert losses != [row["train_loss"] for row in expected.steps]
    assert list(finished.evidence["loss"]) == pytest.approx(
        list(expected.evidence["loss"]), abs=bound
    )
    assert {value.dtype for value in finished.adapter.values()} == {torch.float32}


def test_max_steps_may_take_more_epochs_than_asked_for(tiny_model: Path, task: Task) -> None:
    shares: list[float] = []
    engine = engine_for(tiny_model, task, replace(CONFIG, epochs=1, max_steps=25))
    engine.on_work = shares.append
    finished = train_one(engine)
    assert [row["step"] for row in finished.steps] == list(range(1, 26))
    assert finished.steps[-1]["epoch"] == pytest.approx(25 / math.ceil(len(engine.examples) / 8))
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("tokens", [1, 40])
def test_micro_batches_train_as_the_whole_batch_does(
    tiny_model: Path, task: Task, tokens: int
) -> None:
    whole = train_one(engine_for(tiny_model, task))
    parts = train_one(engine_for(tiny_model, task, replace(CONFIG, micro_batch_tokens=tokens)))
    for ours, theirs in zip(parts.steps, whole.steps, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert parts.peak_memory_bytes < whole.peak_memory_bytes


def test_checkpointing_changes_memory_and_no_number(tiny_model: Path, task: Task) -> None:
    plain = train_one(engine_for(tiny_model, task))
    engine = engine_for(tiny_model, task, replace(CONFIG, gradient_checkpointing="on"))
    recomputed = train_one(engine)
    assert recomputed.steps == plain.steps
    assert recomputed.evidence.equals(plain.evidence)
    assert recomputed.peak_memory_bytes < plain.peak_memory_bytes
    flags = [getattr(part, "gradient_checkpointing", False) for part in engine.base.model.modules()]
    assert not any(flags)


def test_a_model_that_cannot_recompute_is_refused(tiny_model: Path, task: Task) -> None:
    engine = engine_for(tiny_model, task)
    engine.base.model.supports_gradient_checkpointing = False  # type: ignore[assignment]
    settings = replace(CONFIG, gradient_checkpointing="on")
    with pytest.raises(RequestError, match=r"gradient_checkpointing 'on': BertFor\w+ has none"):
        ReferenceEngine(engine.base, engine.examples, engine.held_out, settings)


def test_dropout_is_the_seed_s_and_off_in_scoring(
    tiny_model: Path, task: Task, tmp_path: Path
) -> None:
    settings = replace(CONFIG, lora_dropout=0.5)
    engine = engine_for(tiny_model, task, settings)
    first, again = engine.train([TRIAL, TRIAL])
    assert first.steps == again.steps
    assert first.steps != train_one(engine_for(tiny_model, task)).steps
    assert first.adapter_config["lora_dropout"] == 0.5
    save(first, tmp_path / "adapter")
    table = score_adapter(engine.base, tmp_path / "adapter", engine.held_out)
    np.testing.assert_allclose(table["loss"], first.evidence["loss"], rtol=1e-6)


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_the_optimizer_may_keep_its_states_in_8_bits(
    tiny_model: Path, task: Task, ratio: float
) -> None:
    pytest.importorskip("bitsandbytes")
    settings = replace(CONFIG, optimizer="adamw-8bit", loraplus_ratio=ratio, weight_decay=0.1)
    engine = engine_for(tiny_model, task, settings)
    record = _StepRecord(lambda: None)
    model = attach_adapter(engine.base, TRIAL, saved_modules(engine.base))
    optimizer, _ = engine._run_trainer(model, TRIAL, record)
    inner = optimizer.optimizer
    assert inner.args.optim_bits == 8
    rates = {group["initial_lr"] for group in inner.param_groups if group["params"]}
    assert rates == {TRIAL.learning_rate, TRIAL.learning_rate * ratio}
    assert {group["weight_decay"] for group in inner.param_groups} == {0.0, 0.1}
    assert all(math.isfinite(row["train_loss"]) for row in record.steps)


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
    assert len(diverged.steps) < total_steps(engine.config, engine.examples)
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


def run_out_of_memory(*_: Any, **__: Any) -> Any:
    return torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["batches of 8 examples of up to {longest} tokens", "{half}, --gradient-ch"]),
        (
            {"micro_batch_tokens": 1, "gradient_checkpointing": "on"},
            ["with {longest} tokens at once does not fit", "; add --quantization nf4, or lower"],
        ),
    ],
)
def test_a_trial_that_does_not_fit_ends_in_one_line(
    settings: Any, expected: list[str], tiny_model: Path, task: Task, monkeypatch: Any
) -> None:
    engine = engine_for(tiny_model, task, replace(CONFIG, **settings))
    names = [name for name, _ in engine.base.model.named_modules()]
    results = engine.train([TRIAL, TRIAL])
    assert next(results).trial == TRIAL  # a complete trial is not lost
    monkeypatch.setattr(MicroBatchTrainer, "compute_loss", run_out_of_memory)
    with pytest.raises(RankwiseError) as caught:
        next(results)
    message, longest = str(caught.value), max(engine.examples.lengths)
    half = f"add --micro-batch-tokens {4 * longest}"
    for part in ["out of memory: one trial of rank 4", "it needed 1024 TiB more", *expected]:
        assert part.format(longest=longest, half=half) in message
    assert caught.value.exit_code == 1
    assert len(message.splitlines()) == 1
    assert [name for name, _ in engine.base.model.named_modules()] == names


def test_scoring_that_does_not_fit_ends_in_one_line(
    tiny_model: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_for(tiny_model, task)
    save(train_one(engine), tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    monkeypatch.setattr("rankwise.engine.reference.evaluate", run_out_of_memory)
    for work in (lambda: engine.score([adapter]), lambda: train_one(engine)):
        with pytest.raises(RankwiseError, match="out of memory: scoring of examples of up to"):
            work()
