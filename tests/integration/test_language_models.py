"""Supervised fine-tuning in both engines, against plain transformers and PEFT."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import rankwise
from rankwise.engine.adapter_init import attach_adapter, saved_modules, untrained_adapter
from rankwise.engine.evaluate import evaluate
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.reference import ReferenceEngine, score_adapter
from rankwise.errors import RequestError
from rankwise.models.base_model import BaseModel, load_base
from rankwise.store.costs import token_means
from rankwise.store.records import read_trial
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run
from rankwise.tasks.base import IGNORED, Encoded
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import CompletionObjective
from tests.engine.parity import (
    CONFIG,
    TRIALS,
    adapter_gradients,
    assert_fused_training_matches_the_reference,
    assert_same_training,
)
from tests.tiny_models import load_tiny_lm, make_dialogues, save_tiny, save_tiny_lm

ARCHITECTURES = ["llama", "gpt2", "qwen2", "gemma2", "gpt_neox", "opt"]
Tiny = tuple[BaseModel, Encoded, Encoded]


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    name = getattr(request, "param", "llama")
    return load_tiny_lm(name, tmp_path_factory.mktemp(name))


# Newer ones, experts and scaled logits among them, run with the slow tests.
SLOW = [
    "qwen3", "gemma3_text", "phi3", "smollm3", "gpt_oss", "mixtral", "qwen3_moe", "granite", "cohere"
]  # fmt: skip


def architectures(often: list[str]) -> list[Any]:
    """Return all architectures as cases, slow but for some."""
    names = [*ARCHITECTURES, *SLOW]
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(name, marks=marks[name in often]) for name in names]


every_architecture = pytest.mark.parametrize("tiny", architectures(ARCHITECTURES), indirect=True)


def plain_losses(model: torch.nn.Module, examples: Encoded) -> list[float]:
    """Return each example's loss from transformers, with label -100 on unsupervised tokens."""
    losses = []
    with torch.no_grad():
        for row in range(len(examples)):
            features = examples.features(row)
            assert len(features["labels"]) == len(features["input_ids"])
            batch = {key: torch.tensor([values]) for key, values in features.items()}
            losses.append(model(**batch).loss.item())
    return losses


@every_architecture
def test_losses_match_transformers(tiny: Tiny) -> None:
    base, _, held_out = tiny
    table = evaluate(base.model, base.tokenizer, held_out, base.objective)
    assert list(table["loss"]) == pytest.approx(plain_losses(base.model, held_out), rel=1e-5)
    supervised = [
        sum(label != IGNORED for label in held_out.features(row)["labels"])
        for row in range(len(held_out))
    ]
    assert list(table["tokens"]) == supervised
    assert table["score"].between(0, 1).all()


@pytest.mark.parametrize("tiny", architectures(["llama", "gpt2", "gemma2"]), indirect=True)
def test_training_matches_peft_and_the_trainer(tiny: Tiny) -> None:
    alone = assert_fused_training_matches_the_reference(tiny)
    assert alone.adapter_config["task_type"] == "CAUSAL_LM"
    assert not any("lm_head" in key or "embed" in key for key in alone.adapter)


def test_gradients_match_peft(tiny: Tiny) -> None:
    """In float64; a batch's loss is the mean over its completion tokens."""
    base, train, held_out = tiny
    batch = train.take(range(5))
    base.model.double()
    try:
        saved = saved_modules(base)
        state = TrainingState(TRIALS[1], base, saved, CONFIG, train)
        state.flat.copy_(
            torch.randn(state.flat.shape, dtype=torch.float64) * 0.1
        )  # B is 0 in an untrained adapter
        parameters = state.adapter()
        with packed_model(base) as model:
            loop = FusedEngine(base, train, held_out, CONFIG).loop
            (loss,) = loop.forward_backward(model, [state], [range(5)])
        state.flat.copy_(state.flat.grad)  # so that the names are those of the adapter
        ours = state.adapter()

        model = attach_adapter(base, TRIALS[1], saved)
        set_peft_model_state_dict(model, parameters)
        tokens, expected = sum(map(len, batch.labels)), 0.0
        for row in range(len(batch)):
            features = batch.features(row)
            logits = model(input_ids=torch.tensor([features["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(features["labels"][1:])
            # Not the model's own loss, which is taken in float32.
            share = (
                torch.nn.functional.cross_entropy(
                    logits, labels, ignore_index=IGNORED, reduction="sum"
                )
                / tokens
            )
            share.backward()
            expected += share.item()
        theirs = adapter_gradients(model)
    finally:
        base.model.float()
    assert loss == pytest.approx(expected, rel=1e-10)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert float(theirs[key].abs().max()) > 1e-8, key
        torch.testing.assert_close(value, theirs[key], rtol=0.0, atol=1e-10)


def test_the_saved_adapter_gives_the_same_figures_in_peft(tiny: Tiny, tmp_path: Path) -> None:
    base, train, held_out = tiny
    finished = next(iter(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[:1])))
    save_file(finished.adapter, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(finished.adapter_config))
    scored = score_adapter(base, tmp_path, held_out)
    for column in ("loss", "score", "tokens"):
        np.testing.assert_allclose(scored[column], finished.evidence[column], atol=1e-6)
    anew = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.name), tmp_path
    ).eval()
    assert list(finished.evidence["loss"]) == pytest.approx(plain_losses(anew, held_out), rel=1e-5)


def test_an_adapter_on_the_output_layer_is_trained_as_by_peft(tmp_path: Path) -> None:
    _, train, held_out = load_tiny_lm("llama", tmp_path)
    base = load_base(str(tmp_path), CompletionObjective(), ["q_proj", "lm_head"], [2])
    assert "lm_head" in base.targets
    expected = next(iter(ReferenceEngine(base, train, held_out, CONFIG).train(TRIALS[1:2])))
    fused = next(iter(FusedEngine(base, train, held_out, CONFIG).train(TRIALS[1:2])))
    assert_same_training(fused, expected)
    assert any("lm_head.lora_A" in key for key in fused.adapter)
    assert not any("base_layer" in key for key in fused.adapter)


def test_models_that_cannot_generate_text_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is an encoder"):
        load_base(str(tiny_model), CompletionObjective(), ["all-linear"], [4])
    save_tiny("llama", tmp_path)  # without a head
    with pytest.raises(RequestError, match="has no weights for lm_head"):
        load_base(str(tmp_path), CompletionObjective(), ["all-linear"], [4])
    tied = tmp_path / "tied"
    tied.mkdir()
    save_tiny_lm("llama", tied, tie_word_embeddings=True)
    assert load_base(str(tied), CompletionObjective(), ["all-linear"], [4]).newly_initialized == ()


def test_a_sweep_of_dialogues_ends_with_a_decision_and_resumes(tmp_path: Path) -> None:
    data, out = tmp_path / "dialogues.jsonl", tmp_path / "out"
    pd.DataFrame(make_dialogues(120)).to_json(data, orient="records", lines=True)
    request = {
        "model": str(save_tiny_lm("llama", tmp_path)), "data": data, "ranks": (2, 4),
        "learning_rate": 5e-3,
        "margin": 5.0, "out": out,
    }  # fmt: skip
    result = rankwise.sweep(**request)
    assert result.decision.rank == 2
    assert result.score == "token accuracy"
    assert "token accuracy" in result.report.read_text()
    summary = read_trial(out / "trials" / "r2-lr0.005-seed0")
    own = result.evidence[(result.evidence["rank"] == 2) & (result.evidence["seed"] == 0)]
    assert summary.eval_loss == pytest.approx(own["loss"].mean())
    assert summary.eval_token_loss == pytest.approx(np.average(own["loss"], weights=own["tokens"]))
    assert summary.eval_perplexity == pytest.approx(np.exp(summary.eval_token_loss))
    assert rankwise.sweep(**request).evidence.equals(result.evidence)
    found = rankwise.analyze(out, margin=5.0)
    assert found.decision.rank == 2
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path), out / "best")
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    exported = yaml.safe_load((out / "export" / "trl.yaml").read_text())
    files = {"path": "json", "data_files": str(data), "split": "train"}
    assert exported["datasets"] == [{**files, "columns": ["messages"]}]
    assert (exported["assistant_only_loss"], exported["max_length"]) == (True, 1024)
    card = (out / "best" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(base)" in card
    assert "| token accuracy |" in card


@pytest.mark.parametrize(
    ("strategy", "quantization"),
    [
        pytest.param("once", "none", marks=pytest.mark.slow),
        ("once", "nf4"),
        ("escalate", "nf4"),
        ("race", "int8"),
    ],
)
def test_every_strategy_tunes_a_language_model(
    strategy: str, quantization: str, tmp_path: Path
) -> None:
    """The adapter that it keeps scores in PEFT as in the evidence."""
    data, out = tmp_path / "dialogues.jsonl", tmp_path / "out"
    pd.DataFrame(make_dialogues(120)).to_json(data, orient="records", lines=True)
    config = SweepConfig(
        model=str(save_tiny_lm("llama", tmp_path)), data=data, ranks=(2, 4, 8), strategy=strategy,
        quantization=quantization, learning_rate=(1e-2,), epochs=2, margin=5.0, out=out,
    )  # fmt: skip
    result = rankwise.sweep(config)
    assert (result.decision.rank, result.decision.question) == (
        2,
        "keep" if strategy == "once" else "train",
    )
    assert json.loads((out / "best" / "adapter_config.json").read_text())["r"] == 2
    kept = json.loads((out / "decision.json").read_text())["test"]["trial"]
    stored = pd.read_parquet(out / "trials" / kept / "evidence.parquet").sort_values("example_id")
    with open_run(replace(config, out=tmp_path / "again"), Silent()) as run:
        again = score_adapter(run.base, out / "best", run.encode("held_out")).sort_values(
            "example_id"
        )
    np.testing.assert_allclose(again["loss"], stored["loss"], rtol=1e-4)


@every_architecture
def test_an_untrained_adapter_changes_nothing(tiny: Tiny) -> None:
    base, train, held_out = tiny
    (scored,) = FusedEngine(base, train, held_out, CONFIG).score([untrained_adapter(base)])
    assert list(scored["loss"]) == pytest.approx(plain_losses(base.model, held_out), rel=1e-5)


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_a_sweep_that_learns_nothing_reports_the_loss_of_the_base(
    engine: str, tmp_path: Path
) -> None:
    data, out = tmp_path / "dialogues.jsonl", tmp_path / "out"
    pd.DataFrame(make_dialogues(120)).to_json(data, orient="records", lines=True)
    request = {
        "model": str(save_tiny_lm("llama", tmp_path)), "data": data, "ranks": (2, 4),
        "learning_rate": 1e-12, "max_steps": 4,
        "engine": engine, "out": out,
    }  # fmt: skip
    result = rankwise.sweep(**request)
    base = json.loads((out / "untrained.json").read_text())
    untrained = np.mean(base["loss"])
    assert sorted(base["example_id"]) == sorted(result.evidence["example_id"].unique())
    assert result.decision.verdict == "undetermined"
    assert f"the base without an adapter gives {untrained:.4f}" in result.decision.evidence
    assert result.evidence["loss"].mean() == pytest.approx(untrained, rel=1e-6)


@every_architecture
def test_exact_match_agrees_with_greedy_decoding(tiny: Tiny) -> None:
    """Text that the model writes matches; it does not with another first or last token."""
    base, _, held_out = tiny
    inputs, labels, places = [], [], []
    for row, changed in ((0, None), (1, -1), (2, 0), (3, None)):
        prompt = held_out.input_ids[row][:4]
        prompt_ids = torch.tensor([prompt])
        written = base.model.generate(  # type: ignore[operator]
            input_ids=prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False,
            max_new_tokens=5, pad_token_id=0,
        )[0, len(prompt):].tolist()  # fmt: skip
        if changed is not None:
            written[changed] = (written[changed] + 1) % len(base.tokenizer)
        inputs.append(prompt + written)
        labels.append(written)
        places.append(list(range(len(prompt) - 1, len(prompt) + len(written) - 1)))
    table = evaluate(
        base.model,
        base.tokenizer,
        Encoded((0, 1, 2, 3), inputs, tuple(labels), positions=places),
        base.objective,
    )
    assert token_means(table)["eval_exact_match"] == 0.5
    assert list(table["score"] == 1.0) == [True, False, False, True]


def test_a_dry_run_times_data_with_texts_that_are_too_long(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    prompts = ["the film " * (20 if row % 2 else 1) + str(row) for row in range(60)]
    pd.DataFrame({"prompt": prompts, "completion": "good"}).to_csv(data, index=False)
    planned = rankwise.dry_run(
        model=str(save_tiny_lm("llama", tmp_path)),
        data=data,
        ranks=(2, 4),
        max_length=16,
        out=tmp_path / "out",
    )
    assert planned.seconds > 0
    assert planned.batch[1] <= 16


def test_a_length_that_leaves_no_completion_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    pd.DataFrame({"prompt": [f"the film {n}" * 9 for n in range(20)], "completion": "good"}).to_csv(
        data, index=False
    )
    model = save_tiny_lm("llama", tmp_path)
    with pytest.raises(
        RequestError, match="max_length 5 leaves nothing to learn of any train text"
    ):
        rankwise.sweep(
            model=str(model), data=data, ranks=(2, 4), max_length=5, out=tmp_path / "out"
        )
    larger = rankwise.sweep(
        model=str(model),
        data=data,
        ranks=(2, 4),
        max_length=64,
        seeds=1,
        learning_rate=1e-3,
        out=tmp_path / "out",
    )
    assert json.loads((larger.directory / "sweep.json").read_text())["settings"]["max_length"] == 64


def test_a_test_split_without_completions_is_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    table = pd.DataFrame({"prompt": [f"the film {n}" for n in range(20)], "completion": "good"})
    table.to_csv(data, index=False)
    test = load_task(SweepConfig(data=data)).test
    table.loc[list(test.ids), "prompt"] = [f"the film {n} " * 9 for n in test.ids]
    table.to_csv(data, index=False)
    settings = {
        "ranks": (2, 4),
        "seeds": 2,
        "learning_rate": 1e-3,
        "margin": 10.0,
        "max_length": 12,
    }
    result = rankwise.sweep(
        model=str(save_tiny_lm("llama", tmp_path)), data=data, out=tmp_path / "out", **settings
    )
    assert (result.decision.recommended, result.decision.test) == (2, None)
