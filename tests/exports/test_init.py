"""All exported files together: their data settings, and when they are written."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.trial import Trial
from rankwise.exports import export_files
from rankwise.exports.recipe import read_recipe
from rankwise.lora import Adapter, write_adapter
from tests.exports.data_files import CASES, needs_changes, swept_file
from tests.exports.recipes import PLAIN, RECIPES, make_recipe
from tests.exports.tools import SCHEMAS, assert_known, comment_of, parse_with_trl, run
from tests.factories import seal_trial, write_sealed
from tests.tiny_models import load_tiny


@pytest.mark.parametrize(("name", "template"), CASES)
def test_data_settings_match_both_the_tool_and_the_file(
    name: str, template: bool, tmp_path: Path
) -> None:
    """The config names columns, keys and roles of the file, or says how to change the file."""
    recipe, _ = swept_file(name, tmp_path, template=template)
    files, row = (
        export_files(recipe),
        json.loads((tmp_path / "data.jsonl").read_text().splitlines()[0]),
    )

    (axolotl,) = yaml.safe_load(files["axolotl.yaml"])["datasets"]
    own = axolotl["type"] if isinstance(axolotl["type"], dict) else {}
    assert_known(
        axolotl | {f"type.{key}": value for key, value in own.items()},
        SCHEMAS["axolotl"]["dataset"],
    )
    (described,) = json.loads(files["dataset_info.json"]).values()
    parts = [
        described.get("columns", {}),
        described.get("tags", {}),
        {"formatting": described.get("formatting", "alpaca")},
    ]
    for part in parts:
        assert_known(part, SCHEMAS["llamafactory"]["dataset"])

    changed = {
        tool for tool in ("axolotl.yaml", "llama_factory.yaml") if needs_changes(files[tool])
    }
    assert changed == CHANGED.get((name, template), set())
    if "axolotl.yaml" not in changed:
        fields = {**axolotl, **own}
        assert {value for key, value in fields.items() if key.startswith("field")} <= row.keys()
        if axolotl["type"] == "chat_template":
            keys = axolotl.get("message_property_mappings", {"role": "role", "content": "content"})
            first = row[axolotl["field_messages"]]
            first = (json.loads(first) if isinstance(first, str) else first)[0]
            assert set(keys.values()) == first.keys()
            assert first[keys["role"]] in axolotl.get("roles", {"user": ["user"]})["user"]
    assert yaml.safe_load(files["llama_factory.yaml"])["packing"] is False
    if "llama_factory.yaml" not in changed:
        assert set(described["columns"].values()) <= row.keys()
        if "tags" in described:
            tags, messages = described["tags"], row[described["columns"]["messages"]]
            assert messages[0].keys() == {tags["role_tag"], tags["content_tag"]}
            assert [message[tags["role_tag"]] for message in messages] == [
                tags["user_tag"],
                tags["assistant_tag"],
            ] * 2


def test_long_examples_are_truncated_and_not_dropped() -> None:
    files = export_files(make_recipe())
    axolotl = yaml.safe_load(files["axolotl.yaml"])
    assert (axolotl["sequence_len"], axolotl["excess_length_strategy"]) == (
        PLAIN["max_length"],
        "truncate",
    )
    for name, differs in (("plain", True), ("nf4", False)):  # plain texts lose their end, as here
        assert (
            "shortens prompt and answer" in export_files(RECIPES[name])["llama_factory.yaml"]
        ) == differs


def test_instructions_get_the_prompt_that_rankwise_trained_on(tmp_path: Path) -> None:
    """Chats if the tokenizer has a chat template, else Stanford Alpaca's prompt."""
    chat, plain = (
        export_files(swept_file("alpaca", tmp_path, template=template)[0])
        for template in (True, False)
    )
    (dataset,) = yaml.safe_load(chat["axolotl.yaml"])["datasets"]
    assert (dataset["type"], dataset["field_messages"]) == ("chat_template", "messages")
    assert "template" not in yaml.safe_load(chat["llama_factory.yaml"])
    assert yaml.safe_load(chat["trl.yaml"])["datasets"][0]["columns"] == ["messages"]
    (dataset,) = yaml.safe_load(plain["axolotl.yaml"])["datasets"]
    written = dataset["type"]["format"].format(instruction="Add.", input="1, 2")
    assert written.startswith("Below is an instruction that describes a task, paired with an input")
    assert written.endswith("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n")
    assert yaml.safe_load(plain["llama_factory.yaml"])["template"] == "alpaca"


def test_a_classifier_exports_only_the_adapter_and_explains_why(tmp_path: Path) -> None:
    files = export_files(RECIPES["classification"])
    _, training, model, data = parse_with_trl(
        files["trl.yaml"], tmp_path, "--output_dir", str(tmp_path)
    )
    assert (model.lora_r, model.use_peft, model.model_name_or_path, data.datasets) == (
        8,
        True,
        None,
        [],
    )
    assert training.learning_rate != RECIPES["classification"].optimizer.learning_rate
    for name in ("trl.yaml", "axolotl.yaml", "llama_factory.yaml"):
        assert files[name].startswith("# Only the adapter's settings: this sweep's task is SEQ_CLS")
        assert not {"base_model", "model_name_or_path", "dataset", "datasets"} & set(
            yaml.safe_load(files[name])
        )
    assert "dataset_info.json" not in files


def test_a_setting_that_a_tool_lacks_replaces_its_config_by_a_comment() -> None:
    half = export_files(make_recipe(lora_alpha=0.5))
    for name in ("trl.yaml", "axolotl.yaml", "llama_factory.yaml"):
        assert yaml.safe_load(half[name]) is None
        assert "not a whole number (0.5)" in comment_of(half[name])
    assert run(half["peft_config.py"])["lora_config"].lora_alpha == 0.5
    olora = export_files(make_recipe(init="olora"))
    assert yaml.safe_load(olora["trl.yaml"]) is None
    assert "the initialisation olora" in comment_of(olora["llama_factory.yaml"])
    assert yaml.safe_load(olora["axolotl.yaml"])["peft_init_lora_weights"] == "olora"
    assert run(olora["peft_config.py"])["lora_config"].init_lora_weights == "olora"


def test_eva_draws_the_same_values_as_the_sweep(tmp_path: Path) -> None:
    """The exported Python draws the same A as the reference engine."""
    from peft import get_peft_model, initialize_lora_eva_weights

    from rankwise.engine.adapter_init import EVA_BATCH, attach_adapter, saved_modules
    from rankwise.engine.batches import epoch_batches
    from rankwise.engine.reference import ReferenceEngine

    def drawn(model: Any) -> dict[str, torch.Tensor]:
        return {
            name: value.clone() for name, value in model.state_dict().items() if ".lora_A." in name
        }

    base, train, held_out = load_tiny("llama", tmp_path)
    engine = ReferenceEngine(
        base, train, held_out, TrainingConfig(epochs=1, batch_size=8, init="eva")
    )
    trial = Trial(rank=4, seed=0, learning_rate=1e-3, lora_alpha=4)
    model = attach_adapter(base, trial, saved_modules(base), init="eva")
    engine._initialize_from_data(model, trial)
    expected = drawn(model)
    model.unload()

    text = export_files(make_recipe(init="eva", rank=4, task_type="SEQ_CLS", layout=None))[
        "peft_config.py"
    ]
    assert "initialize_lora_eva_weights" in text
    model = get_peft_model(base.model, run(text)["lora_config"])
    batches = [
        engine._padded_batch(rows)
        for rows in epoch_batches(train.lengths, EVA_BATCH, trial.seed, 0)
    ]
    initialize_lora_eva_weights(
        model, [dict(batch) for batch in batches if len(batch["labels"]) == EVA_BATCH]
    )
    ours = drawn(model)
    model.unload()
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=0.0, atol=1e-5)
    for name in ("trl.yaml", "axolotl.yaml", "llama_factory.yaml"):
        other = export_files(make_recipe(init="eva"))[name]
        assert yaml.safe_load(other) is None
        assert "the initialisation eva" in comment_of(other)


def test_a_gguf_base_must_be_saved_as_a_directory_first(tmp_path: Path) -> None:
    """None of the three tools loads GGUF files; peft_config.py does."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    files = export_files(make_recipe(name=str(path)))
    for name, key in (
        ("trl.yaml", "model_name_or_path"),
        ("axolotl.yaml", "base_model"),
        ("llama_factory.yaml", "model_name_or_path"),
    ):
        assert yaml.safe_load(files[name])[key] == "base"
        assert "The base is a GGUF file, which" in comment_of(files[name])
        assert "save_pretrained('base')" in comment_of(files[name])
    names = run(files["peft_config.py"])
    assert names["base"] == {
        "pretrained_model_name_or_path": str(tmp_path),
        "gguf_file": "tiny.gguf",
    }
    assert names["quantization_config"].dequantize
    assert "GGUF" not in "".join(export_files(make_recipe()).values())


def test_remote_code_is_trusted_if_the_sweep_trusted_it(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    sweep = json.loads((swept / "sweep.json").read_text())
    for trusted in (False, True):
        settings = {**sweep["settings"], "trust_remote_code": trusted}
        write_sealed(copy / "sweep.json", {**sweep, "settings": settings})
        files = export_files(
            make_recipe(trust_remote_code=read_recipe(copy, trial).model.trust_remote_code)
        )
        _, training, *_ = parse_with_trl(
            files["trl.yaml"], tmp_path
        )  # which passes it on to the model
        assert training.trust_remote_code == trusted
        for name in ("axolotl.yaml", "llama_factory.yaml"):
            assert yaml.safe_load(files[name]).get("trust_remote_code", False) == trusted
        assert run(files["peft_config.py"])["base"].get("trust_remote_code", False) == trusted


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_conv1d_layers_are_named_for_tools_that_do_not_find_them(
    kind: str, swept: Path, tmp_path: Path
) -> None:
    """GPT-2 has transformers' Conv1D layers, which Axolotl and LLaMA-Factory do not find."""
    from peft import LoraConfig, get_peft_model

    base, train, held_out = load_tiny(kind, tmp_path)
    trial = Trial(rank=2, seed=0, learning_rate=1e-3, lora_alpha=2)
    (finished,) = FusedEngine(
        base, train.take(range(8)), held_out, TrainingConfig(epochs=1, batch_size=8)
    ).train([trial])
    name = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    shutil.copytree(swept, tmp_path / "out")
    saved = tmp_path / "out" / "trials" / name / "adapter"
    shutil.rmtree(saved)
    write_adapter(Adapter(finished.adapter, finished.adapter_config), saved)
    seal_trial(saved.parent)
    files = export_files(read_recipe(tmp_path / "out", name))
    axolotl, llama_factory = (
        yaml.safe_load(files[name]) for name in ("axolotl.yaml", "llama_factory.yaml")
    )
    trl = yaml.safe_load(files["trl.yaml"])
    assert trl["lora_target_modules"] == ["all-linear"]  # PEFT finds Conv1D layers
    if kind == "llama":
        assert (axolotl["lora_target_linear"], llama_factory["lora_target"]) == (True, "all")
        return
    assert "lora_target_linear" not in axolotl
    for names in (axolotl["lora_target_modules"], llama_factory["lora_target"].split(",")):
        model = get_peft_model(base.model, LoraConfig(target_modules=names))
        assert set(model.targeted_module_names) == set(base.targets)
        model.unload()


def test_a_provisional_rank_is_marked_in_every_config(provisional: Path, swept: Path) -> None:
    decision = json.loads((provisional / "decision.json").read_text())
    reached = math.floor(100 * decision["confidence_reached"])
    mark = f"PROVISIONAL ({reached} % sure, 95 % asked): another rank may be better."
    for path in (provisional / "export").iterdir():
        comments = comment_of(path.read_text())
        assert mark in comments, path.name
        assert f"Rank {decision['recommended']}, recommended for now by rankwise" in comments
    rank = yaml.safe_load((provisional / "export" / "trl.yaml").read_text())["lora_r"]
    assert rank == decision["recommended"]
    for path in (swept / "export").iterdir():
        assert "PROVISIONAL" not in path.read_text()
        assert "selected by rankwise" in comment_of(path.read_text())


def test_a_provisional_rank_to_truncate_to_is_marked() -> None:
    recipe = replace(make_recipe(truncate_to=4), provisional="83 % sure, 95 % asked")
    for name, text in export_files(recipe).items():
        if name.endswith(".json"):
            continue
        assert "PROVISIONAL (83 % sure, 95 % asked)" in comment_of(text)
        assert "truncate the adapter to the rank recommended for now by rankwise" in comment_of(
            text
        )


def test_configs_are_written_only_for_a_recommended_rank(swept: Path, tmp_path: Path) -> None:
    from rankwise.analysis.analysis import analyze
    from rankwise.exports import write_exports

    assert {path.name for path in (swept / "export").iterdir()} == {
        "peft_config.py", "trl.yaml", "axolotl.yaml", "llama_factory.yaml",
    }  # fmt: skip
    write_exports(swept, None, analyze(swept).decision, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_hub_data_set_is_named_in_the_way_of_each_tool(tmp_path: Path) -> None:
    files = export_files(make_recipe(source="org/chats:short:test"))
    *_, data = parse_with_trl(files["trl.yaml"], tmp_path)
    (named,) = data.datasets
    assert (named.path, named.name, named.split, named.data_files) == (
        "org/chats",
        "short",
        "test",
        None,
    )
    (axolotl,) = yaml.safe_load(files["axolotl.yaml"])["datasets"]
    assert (axolotl["path"], axolotl["name"], axolotl["split"]) == ("org/chats", "short", "test")
    assert "ds_type" not in axolotl
    (described,) = json.loads(files["dataset_info.json"]).values()
    # https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
    assert (described["hf_hub_url"], described["subset"], described["split"]) == (
        "org/chats",
        "short",
        "test",
    )
    whole = export_files(make_recipe(source="org/chats"))
    assert json.loads(whole["dataset_info.json"])["sweep_data"].keys() & {"subset", "split"} == {
        "split"
    }
    assert not any("datasets saved" in text for text in (*files.values(), *whole.values()))


CHANGED = {  # files that these tools cannot read as they are
    ("sharegpt, several names", True): {"llama_factory.yaml"},
    ("two pairs of keys", True): {"axolotl.yaml", "llama_factory.yaml"},
    ("messages as text", True): {"llama_factory.yaml"},
    ("messages with a system message and tools", True): {"llama_factory.yaml"},
    ("messages with weights", True): {"axolotl.yaml", "llama_factory.yaml"},
    ("prompts and completions of messages", True): {"axolotl.yaml", "llama_factory.yaml"},
    ("alpaca", True): {"axolotl.yaml"},
    ("alpaca without inputs", True): {"axolotl.yaml"},
}
