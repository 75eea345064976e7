"""The model card: its metadata, its text, and its code."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

import rankwise
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.trial import Trial
from rankwise.exports.model_card import loading_code
from rankwise.lora import Adapter, write_adapter
from rankwise.models.base_model import load_base
from rankwise.models.quantization import is_quantized, keep_as_loaded
from rankwise.store.records import read_evidence, read_sweep
from tests.exports.recipes import make_recipe
from tests.tiny_models import load_tiny


def test_the_hub_reads_the_metadata(swept: Path) -> None:
    decision = json.loads((swept / "decision.json").read_text())
    data = ModelCard.load(swept / "best" / "README.md", ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag, data.metrics) == (
        "peft",
        "text-classification",
        ["accuracy"],
    )
    assert {"lora", "transformers", "rankwise"} <= set(data.tags)
    assert data.base_model is None  # a directory is not on the hub
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {
        name: round(decision["test"][key], 4)
        for name, key in (("accuracy", "score"), ("loss", "loss"))
    }


def test_a_hub_base_is_tagged_as_peft_tags_it(swept: Path) -> None:
    from rankwise.analysis.analysis import analyze
    from rankwise.exports.model_card import write_card
    from rankwise.exports.recipe import read_recipe

    sweep = read_sweep(swept)
    assert sweep is not None
    decision = json.loads((swept / "decision.json").read_text())
    recipe = read_recipe(swept, decision["test"]["trial"])
    recipe = replace(recipe, model=replace(recipe.model, name="org/base"))
    (swept.parent / "card").mkdir()
    decided = replace(analyze(swept, margin=0.5).decision, margin=0.123456)
    write_card(swept.parent / "card", decided, recipe, sweep)
    card = ModelCard.load(swept.parent / "card" / "README.md")
    assert "within the margin of 0.123 for" in card.text
    data = card.data
    assert data.base_model == "org/base"
    assert "base_model:adapter:org/base" in data.tags


def test_the_card_shows_the_evidence(swept: Path) -> None:
    decision = json.loads((swept / "decision.json").read_text())
    sweep = json.loads((swept / "sweep.json").read_text())
    text = ModelCard.load(swept / "best" / "README.md").text
    assert decision["answer"] in text
    assert "margin of 0.5" in text
    assert "95% confidence" in text
    for package, version in sweep["environment"]["versions"].items():
        assert f"- {package} {version}" in text
    rows = [
        line.strip("| ").replace("*", "").split(" | ")
        for line in text.splitlines()
        if re.match(r"\| \**\d", line)
    ]
    assert [int(row[0]) for row in rows] == [2, 4, 8]
    for row, known in zip(rows, decision["table"], strict=True):
        assert row[2] == f"{known['trainable_params']:,}"
        assert float(row[4].split()[0]) == round(known["loss_mean"], 4)
        assert float(row[-1]) == round(known["worst_difference"], 4)
        assert row[1].endswith(" %")
    assert [line for line in text.splitlines() if line.startswith("| **")] == [
        line for line in text.splitlines() if line.startswith("| **2** ")
    ]


def test_a_card_says_first_that_a_rank_is_provisional(provisional: Path, swept: Path) -> None:
    decision = json.loads((provisional / "decision.json").read_text())
    rank, reached = decision["recommended"], math.floor(100 * decision["confidence_reached"])
    card = ModelCard.load(provisional / "best" / "README.md", ignore_metadata_errors=False)
    assert card.data.model_name == f"LoRA rank {rank} (provisional), reviews.csv"
    title, first, *_ = [line for line in card.text.splitlines() if line]
    assert title == f"# LoRA adapter of rank {rank} for reviews.csv (provisional)"
    mark = f"**Provisional: {reached} % sure, 95 % asked.**"
    assert first == f"{mark} {decision['answer']}"
    (bold,) = [line for line in card.text.splitlines() if line.startswith("| **")]
    assert bold.startswith(f"| **{rank}** | **{reached} %** |")
    header = next(line for line in card.text.splitlines() if line.startswith("| rank | "))
    assert header.startswith("| rank | sure that it is within the margin |")

    selected = ModelCard.load(swept / "best" / "README.md", ignore_metadata_errors=False)
    assert "rovisional" not in selected.text
    assert selected.data.model_name == "LoRA rank 2, reviews.csv"


def test_a_card_without_known_confidence_has_no_column_of_it(swept: Path, tmp_path: Path) -> None:
    from rankwise.exports.model_card import write_card
    from rankwise.exports.recipe import read_recipe

    sweep, decision = read_sweep(swept), rankwise.analyze(swept, margin=0.5).decision
    assert sweep is not None and decision.test is None
    table = tuple(replace(row, confidence_within_margin=None) for row in decision.table)
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    (tmp_path / "card").mkdir()
    write_card(tmp_path / "card", replace(decision, table=table), read_recipe(swept, trial), sweep)
    text = (tmp_path / "card" / "README.md").read_text()
    assert "sure that" not in text.lower()


def test_the_code_reproduces_the_losses_of_the_evidence(swept: Path) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (swept / "best" / "README.md").read_text(), re.DOTALL
    )
    names: dict[str, object] = {}
    base = json.loads((swept / "sweep.json").read_text())["paths"]["model"]
    assert base not in code  # a card holds no path of the machine that made it
    placed = code.replace("'path/to/base'", repr(base))
    exec(placed.replace('"."', repr(str(swept / "best"))), names)
    model: Any = names["model"]
    tokenizer: Any = names["tokenizer"]
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    config = json.loads((swept / "trials" / trial / "config.json").read_text())
    evidence = read_evidence(swept)
    for key in ("rank", "seed", "learning_rate"):
        evidence = evidence[evidence[key] == config[key]]
    table = pd.read_csv(swept.parent / "reviews.csv")
    for row in evidence.head(8).itertuples():
        text, label = table.loc[row.example_id, ["text", "label"]]
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
        np.testing.assert_allclose(
            row.loss, -torch.log_softmax(logits, 0)[int(label)].item(), rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_code_quantises_the_base_as_the_sweep_did(kind: str, tmp_path: Path) -> None:
    """Modules trained in full stay unquantised, such as a pooler missing from the checkpoint."""
    plain, train, held_out = load_tiny("bert", tmp_path)
    weights = {
        key: value
        for key, value in plain.model.base_model.state_dict().items()
        if "pooler" not in key
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base = load_base(plain.name, plain.objective, "all-linear", [4], quantization=kind)
    trial = Trial(rank=4, seed=3, learning_rate=1e-2, lora_alpha=4)
    training = TrainingConfig(epochs=1, batch_size=8)
    (finished,) = FusedEngine(base, train.take(range(80)), held_out, training).train([trial])
    write_adapter(Adapter(finished.adapter, finished.adapter_config), tmp_path / "best")
    recipe = make_recipe(
        task_type="SEQ_CLS",
        name=base.name,
        quantization=kind,
        modules_to_save=base.trained_in_full,
    )
    names: dict[str, Any] = {}
    exec(
        loading_code(recipe, ("0", "1"), base.name).replace('"."', repr(str(tmp_path / "best"))),
        names,
    )
    model = names["model"]
    assert all(
        is_quantized(model.base_model.model.get_submodule(target).base_layer)
        for target in base.targets
    )
    keep_as_loaded(model)
    for row in range(8):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([held_out.input_ids[row]])).logits[0].double()
        loss = -torch.log_softmax(logits, 0)[held_out.labels[row]].item()
        np.testing.assert_allclose(loss, finished.evidence["loss"][row], rtol=1e-4)


def test_the_code_trusts_remote_code_as_the_sweep_did() -> None:
    for trusted, times in ((False, 0), (True, 2)):  # tokenizer and model
        code = loading_code(make_recipe(trust_remote_code=trusted), (), "base")
        assert code.count("from_pretrained(base, trust_remote_code=True)") == times
