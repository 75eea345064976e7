"""``rankwise.shrink`` from end to end, on a tiny language model and on a sweep's classifier."""

import json
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import rankwise
from rankwise.engine.reference import score_adapter
from rankwise.errors import RequestError
from rankwise.lora.files import read_adapter
from rankwise.models.base_model import load_base
from rankwise.settings import options
from rankwise.shrinking.config import ShrinkConfig, ShrinkSettings
from rankwise.shrinking.held_out import encode_held_out, read_held_out
from tests.conftest import make_reviews
from tests.shrinking.adapters import save_adapter
from tests.tiny_models import save_tiny_lm


def test_a_language_models_adapter_is_cut_and_loads_in_peft(lm: Path, tmp_path: Path) -> None:
    """The training tokens are random, so the margin is wide; losses must be those of PEFT."""
    empty = rankwise.shrink(lm / "adapter", data=lm / "held-out.jsonl", out=tmp_path / "out")
    document = json.loads((tmp_path / "out" / "decision.json").read_text())
    assert document["verdict"] == empty.verdict
    assert document["table"][0]["rank"] == 8
    assert document["forward_passes"] <= 6 * 160
    losses = {row.rank: row.loss for row in empty.decisions[0].table}
    assert np.isfinite(list(losses.values())).all()
    if empty.written:
        base = AutoModelForCausalLM.from_pretrained(lm / "base")
        PeftModel.from_pretrained(base, empty.written[0])


def test_the_base_is_in_the_precision_asked_for_and_the_decision_says_so(lm: Path) -> None:
    """The losses of fp32 change by bf16's rounding, and not by more."""
    documents = [
        rankwise.shrink(
            lm / "adapter", data=lm / "held-out.jsonl", device="cpu", precision=precision
        ).as_dict()
        for precision in ("fp32", "bf16")
    ]
    named = [(each["device"], each["precision"]) for each in documents]
    assert named == [("cpu", "fp32"), ("cpu", "bf16")]
    full, half = (each["table"][0]["loss"] for each in documents)
    assert full != half == pytest.approx(full, rel=0.02)


def test_a_sweeps_adapters_are_cut_together(swept: Path, tmp_path: Path) -> None:
    make_reviews(300, seed=9).to_csv(tmp_path / "new.csv", index=False)
    trials = sorted((swept / "trials").glob("r8-*seed*/adapter"))[:2]
    result = rankwise.shrink(trials, data=tmp_path / "new.csv", margin=0.2, out=tmp_path / "out")
    assert [each.own_rank for each in result.decisions] == [8, 8]
    assert result.rank == max(each.rank or 0 for each in result.decisions)
    assert result.verdict == "smaller"
    assert len(result.written) == sum(each.verdict == "smaller" for each in result.decisions)
    assert (tmp_path / "out" / "report.html").exists()


def test_reference_and_fused_engine_agree(swept: Path, tmp_path: Path) -> None:
    make_reviews(100, seed=9).to_csv(tmp_path / "new.csv", index=False)
    trial = next((swept / "trials").glob("r4-*seed0/adapter"))
    one, other = (
        rankwise.shrink(trial, data=tmp_path / "new.csv", margin=0.2, engine=engine)
        for engine in ("fused", "reference")
    )
    for row, same in zip(one.decisions[0].table, other.decisions[0].table, strict=True):
        assert row.loss == pytest.approx(same.loss, abs=1e-5)
        assert row.outcome == same.outcome


def test_bad_requests(lm: Path, tmp_path: Path) -> None:
    data = lm / "held-out.jsonl"
    for adapters, settings, words in [
        ([], {}, "adapters: none given"),
        ([lm / "adapter", lm / "adapter"], {}, "given more than once"),
        (lm / "base", {"data": data}, "holds a model and no adapter"),
        (lm / "adapter", {}, "data is missing"),
        (lm / "adapter", {"data": data, "ranks": [8, 16]}, "none of [8, 16] is below it"),
        (lm / "adapter", {"data": data, "out": lm}, "is not empty"),
        (lm / "adapter", {"data": data, "model": str(tmp_path)}, "has no config.json"),
        (lm / "adapter", {"data": data, "epochs": 2}, "is not a setting of shrink"),
        (lm / "adapter", {"data": data, "target_modules": "mlp"}, "is not a setting of shrink"),
        (lm / "adapter", {"data": data, "margin": 0}, "margin 0"),
        (lm / "adapter", {"data": data, "device": "cuda:99"}, "device 'cuda:99'"),
        (lm / "adapter", {"data": data, "device": "gpu"}, "allowed is auto, cpu, cuda"),
        (lm / "adapter", {"data": data, "precision": "fp8"}, "precision 'fp8'"),
    ]:
        with pytest.raises(RequestError) as error:
            rankwise.shrink(adapters, **settings)  # type: ignore[arg-type]
        assert words in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
        ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("mixtral", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    ],
    ids=["bias", "lora-bias", "embedding", "Conv1D", "experts"],
)
def test_parts_other_than_linear_layers_are_scored_as_peft_does(
    lm: Path, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    base = save_tiny_lm(kind, tmp_path / "base")
    peft_model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=4, **settings),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, peft_model.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    path, data = tmp_path / "adapter", lm / "held-out.jsonl"
    peft_model.save_pretrained(path)
    result = rankwise.shrink(path, data=data, margin=1e-6)
    config = ShrinkConfig(adapters=(path,), data=data)
    task = read_held_out(config, str(base), read_adapter(path))
    loaded = load_base(str(base), task.objective, "all-linear", [])
    examples = encode_held_out(task, loaded, None).encoded
    scored = examples.take(range(result.decisions[0].examples))
    expected = score_adapter(loaded, path, scored)["loss"].mean()
    assert result.decisions[0].full.loss == pytest.approx(expected, abs=2e-5)
    if kind == "mixtral":
        with pytest.raises(RequestError, match=r"^per_layer: the experts stacked in .* share one"):
            rankwise.shrink(path, data=data, per_layer=True)


def test_an_adapter_of_rank_one_has_nothing_to_cut(lm: Path, tmp_path: Path) -> None:
    path = save_adapter(lm / "base", tmp_path / "one", rank=1, steps=1)
    with pytest.raises(RequestError, match="has rank 1, nothing to cut"):
        rankwise.shrink(path, data=lm / "held-out.jsonl")


def test_keyword_arguments_are_the_settings() -> None:
    assert {*get_type_hints(ShrinkSettings)} == {*options(ShrinkConfig)} - {"adapters"}
