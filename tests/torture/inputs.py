"""Small good inputs of every kind, and the calls that read them."""

import bz2
import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rankwise.analysis.analysis import analyze
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from tests.conftest import make_reviews
from tests.tiny_models import make_dialogues, save_tiny, save_tiny_lm, write_config

Make = Callable[[Path], object]

TRIALS = {"loss": [0.5, 0.6, 0.4, 0.5], "rank": [4, 4, 8, 8], "seed": [0, 1, 0, 1]}


@cache
def _tokenizer() -> Any:
    import tempfile

    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        return AutoTokenizer.from_pretrained(save_tiny_lm("llama", Path(directory)))


# ---- Data ----


def _csv(place: Path, **options: Any) -> None:
    rows = make_reviews(12).assign(note='a, "quoted" text', number=0.5)
    rows.to_csv(place / "data", index=False, **options)


def _text(place: Path, text: str | bytes, name: str = "data") -> None:
    (place / name).write_bytes(text.encode() if isinstance(text, str) else text)


def _dialogues(count: int = 12) -> list[dict[str, Any]]:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    return [{**each, "tools": [tool]} for each in make_dialogues(count)]


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _sharegpt() -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [
        {"system": "Be kind.", "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in each["messages"]]}
        for each in make_dialogues(12)
    ]  # fmt: skip


def _prompts() -> list[dict[str, Any]]:
    return [
        {"prompt": each["messages"][:1], "completion": each["messages"][1:2]}
        for each in make_dialogues(12)
    ]


def _alpaca() -> list[dict[str, Any]]:
    rows = make_reviews(12)["text"]
    return [{"instruction": text, "input": "the film", "output": text[:9]} for text in rows]


def _parquet(place: Path) -> None:
    rows = make_reviews(12).assign(when=pd.Timestamp("2026-01-01"), tags=[["a", "b"]] * 12)
    rows["label"] = rows["label"].astype("category")
    rows.to_parquet(place / "data")


def _saved(place: Path) -> None:
    import datasets

    labels = datasets.ClassLabel(names=["bad", "good"])
    whole = datasets.Dataset.from_pandas(make_reviews(12)).cast_column("label", labels)
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(str(place / "data"))


def _arrow(place: Path) -> None:
    import pyarrow as pa

    table = pa.Table.from_pandas(make_reviews(12).assign(nested=[{"a": [1, 2]}] * 12))
    with (
        pa.OSFile(str(place / "data"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def _shards(place: Path) -> None:
    (place / "data").mkdir()
    for part in range(2):
        make_reviews(12, part).to_parquet(place / "data" / f"train-0000{part}-of-00002.parquet")
    _text(
        place,
        "---\nconfigs:\n- config_name: default\n  data_files: train-*\n---\n",
        "data/README.md",
    )


def _load(place: Path, encode: bool = False, name: str = "data") -> None:
    kind: Any = "sft" if name.endswith(".txt") else "auto"
    task = load_task(DataConfig(data=place / name, task=kind))
    if encode and task.layout is not None:
        task.encoder(task.train, _tokenizer(), 64)


def _named(name: str, write: Make) -> Make:
    """Return a maker whose file has the ending of its format."""

    def make(place: Path) -> None:
        write(place)
        (place / "data").rename(place / name)

    return make


def _data(name: str, write: Make, encode: bool = False) -> tuple[Make, Make, float]:
    return _named(name, write), partial(_load, encode=encode, name=name), 3.0


DATA = {
    "csv": _data("data.csv", _csv),
    "tsv": _data("data.tsv", partial(_csv, sep="\t")),
    "csv-decimal-commas": _data("data.csv", partial(_csv, sep=";", decimal=",")),
    "text": _data("data.txt", lambda place: _text(place, "\n".join(make_reviews(12)["text"])), True),
    "json": _data("data.json", lambda place: _text(place, json.dumps({"train": make_reviews(12).to_dict("records")}))),
    "json-lines": _data("data.jsonl", lambda place: _text(place, _lines(make_reviews(12).to_dict("records")))),
    "json-columns": _data("data.json", lambda place: _text(place, make_reviews(12).to_json())),
    "gzip": _data("data.csv.gz", lambda place: _text(place, gzip.compress(make_reviews(12).to_csv().encode()))),
    "bzip2": _data("data.jsonl.bz2", lambda place: _text(place, bz2.compress(_lines(_alpaca()).encode()))),
    "parquet": _data("data.parquet", _parquet),
    "arrow": _data("data.arrow", _arrow),
    "saved-data-set": _data("data", _saved),
    "directory-of-shards": _data("data", _shards),
    "messages": _data("data.jsonl", lambda place: _text(place, _lines(_dialogues())), True),
    "sharegpt": _data("data.jsonl", lambda place: _text(place, _lines(_sharegpt())), True),
    "prompt-and-completion": _data("data.jsonl", lambda place: _text(place, _lines(_prompts())), True),
    "alpaca": _data("data.json", lambda place: _text(place, json.dumps(_alpaca())), True),
}  # fmt: skip

# ---- Models and adapters ----


def _gguf(place: Path) -> None:
    """Write a tiny Llama as a GGUF file."""
    import gguf
    import numpy as np

    from tests.conftest import WORDS

    writer = gguf.GGUFWriter(str(place / "model.gguf"), "llama")
    width, inner, words = 32, 48, [*WORDS, "fi", "lm", *map(chr, range(33, 127))]
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["f i", "l m"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    shapes = {
        "token_embd": (len(words), width), "output": (len(words), width), "output_norm": (width,),
        "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,), "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width // 2, width), "blk.0.attn_v": (width // 2, width), "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, 0.01, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _load_base(place: Path, name: str = "") -> None:
    from rankwise.models.base_model import load_base
    from rankwise.tasks.losses import CompletionObjective

    load_base(str(place / name), CompletionObjective(), ["all-linear"], [2])


def _plan(place: Path) -> None:
    from rankwise.planning.config import PlanConfig
    from rankwise.planning.params import count_at_rank
    from rankwise.planning.prepare import prepare

    prepared = prepare(PlanConfig(model=str(place), ranks=(2,)))
    count_at_rank(prepared.skeleton, prepared.config, 2)


def _plan_requests(place: Path) -> None:
    from rankwise import plan

    write_config(place / "model", "llama", num_hidden_layers=4)
    settings = None
    with suppress(ValueError, OSError):  # a request is no file
        settings = json.loads((place / "request.json").read_bytes())
    if isinstance(settings, dict):
        plan(str(place / "model"), **settings)


def _requests(place: Path) -> None:
    settings = {
        "ranks": [2, 4], "batch_size": 2, "seq_len": 8, "precision": "bf16", "rank_pattern": {"q_proj": 1},
        "target_modules": ["q_proj", "v_proj"], "device": "T4", "memory": "4GB", "use_dora": False,
    }  # fmt: skip
    _text(place, json.dumps(settings), "request.json")


def _adapters(place: Path) -> None:
    from tests.lora.adapters import write_two

    write_two(place)
    for name in ("one", "two"):
        config = json.loads((place / name / "adapter_config.json").read_text())
        config |= {"rank_pattern": {"h.9": 2}, "alpha_pattern": {"h.9": 3}, "modules_to_save": None}
        _text(place, json.dumps(config), f"{name}/adapter_config.json")


def _inspect(place: Path) -> None:
    from rankwise.lora.inspection import inspect_adapter

    inspect_adapter(place / "one", place / "two").as_dict()


MODELS: dict[str, tuple[Make, Make, float]] = {
    "config-of-a-plan": (lambda place: write_config(place, "qwen2_moe"), _plan, 1.5),
    "config-of-vision": (lambda place: write_config(place, "qwen2_5_vl"), _plan, 1.0),
    "plan-requests": (_requests, _plan_requests, 0.5),
    "model-and-tokenizer": (partial(save_tiny_lm, "llama"), _load_base, 2.0),
    "gguf": (_gguf, partial(_load_base, name="model.gguf"), 1.0),
    "adapters": (_adapters, _inspect, 3.0),
}

# ---- Sweep directories ----


def _sweep(place: Path) -> None:
    from rankwise import sweep

    save_tiny("bert", place / "model")
    make_reviews(40).to_csv(place / "reviews.csv", index=False)
    settings: dict[str, Any] = {"ranks": (2, 4), "max_steps": 2, "learning_rate": 1e-3, "seeds": 2}
    sweep(model=str(place / "model"), data=place / "reviews.csv", out=place / "sweep", **settings)
    for path in [
        *(place / "model").iterdir(),
        place / "reviews.csv",
        *(place / "sweep").rglob("*.html"),
    ]:
        path.unlink()


def _read_sweep(place: Path) -> None:
    from rankwise.report.compare_sweeps import read_compared_sweeps
    from rankwise.report.html import write_report

    analyze(place / "sweep").as_dict()
    write_report(place / "sweep")
    read_compared_sweeps([place / "sweep", place / "sweep"])


# ---- Results of others ----


def _trainer_runs(place: Path) -> None:
    for number, (rank, seed, loss) in enumerate(
        [(4, 0, 0.5), (4, 1, 0.6), (8, 0, 0.4), (8, 1, 0.5)]
    ):
        run = place / f"run{number}"
        run.mkdir()
        log = [{"step": 1, "loss": 0.9}, {"step": 2, "eval_loss": loss}]
        state = {"log_history": log, "global_step": 2, "best_metric": loss, "best_global_step": 2}
        _text(run, json.dumps(state), "trainer_state.json")
        _text(
            run,
            json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8}),
            "adapter_config.json",
        )
        _text(run, json.dumps({"seed": seed, "learning_rate": 1e-3}), "args.json")


def _cookbook_runs(place: Path) -> None:
    for number, rank in enumerate((4, 8)):
        run = place / f"run{number}"
        run.mkdir()
        _text(run, json.dumps({"lora_rank": rank, "learning_rate": 1e-3}), "config.json")
        _text(
            run,
            _lines([{"step": 1, "train_mean_nll": 1.0}, {"step": 2, "test/nll": 0.5}]),
            "metrics.jsonl",
        )


def _ray(place: Path) -> None:
    states = []
    for rank in (4, 8):
        trial = place / f"train_r={rank}"
        trial.mkdir()
        _text(trial, json.dumps({"lora_r": rank, "seed": 0}), "params.json")
        _text(
            trial,
            _lines([{"training_iteration": 1, "eval_loss": 0.5, "config": {}}]),
            "result.json",
        )
        _text(trial, "training_iteration,eval_loss\n1,0.5\n", "progress.csv")
        states.append([json.dumps({"status": "TERMINATED", "relative_logdir": trial.name}), "{}"])
    _text(place, json.dumps({"trial_data": states}), "experiment_state-1.json")


def _lm_eval(place: Path) -> None:
    for rank in (4, 8):
        (place / f"r{rank}").mkdir()
        results = {
            "results": {"arc": {"alias": "arc", "acc,none": 0.1 * rank, "acc_stderr,none": 0.01}},
            "config": {"model": "hf", "model_args": f"pretrained=m,peft=out/r{rank}"},
            "higher_is_better": {"arc": {"acc": True}},
            "versions": {"arc": 1},
        }
        _text(place, json.dumps(results), f"r{rank}/results_2026-01-01.json")


def _comparisons(place: Path) -> None:
    from tests.analysis.results import comparison

    for rank in (32, 64):
        _text(place, json.dumps(comparison(rank)), f"rank{rank}.json")


def _table(place: Path) -> None:
    rows = pd.DataFrame(TRIALS).assign(config='{"optim": "adamw"}', accuracy=["54.0 ± 0.4"] * 4)
    rows.drop(columns="accuracy").to_csv(place / "results.csv", index=False)


def _analyze(place: Path, name: str = "", **options: Any) -> None:
    analyze(place / name, **options).as_dict()


def _figures(place: Path) -> None:
    (place / "out").mkdir()
    rows = pd.DataFrame({"example_id": [0, 1], "loss": [0.5, 0.6], "score": [1.0, 0.0]})
    rows.to_parquet(place / "out" / "rankwise_evidence.parquet")
    rows.to_json(place / "out" / "rankwise_evidence.jsonl", orient="records", lines=True)
    _text(place, _lines([{"step": 1, "eval_loss": 0.5}]), "out/metrics.jsonl")


def _read_figures(place: Path) -> None:
    from rankwise.trainers.figures import read_example_losses, read_metric

    read_metric("eval_loss", place / "out")
    read_example_losses(place / "out")
    (place / "out" / "rankwise_evidence.parquet").unlink(missing_ok=True)
    read_example_losses(place / "out")


RESULTS: dict[str, tuple[Make, Make, float]] = {
    "sweep-directory": (_sweep, _read_sweep, 1.0),
    "results-table": (_table, partial(_analyze, name="results.csv"), 2.0),
    "results-json": (lambda place: _text(place, json.dumps(pd.DataFrame(TRIALS).to_dict("records")), "results.json"),
                     partial(_analyze, name="results.json"), 2.0),
    "trainer-runs": (_trainer_runs, _analyze, 2.0),
    "cookbook-runs": (_cookbook_runs, _analyze, 2.0),
    "ray-tune": (_ray, _analyze, 2.0),
    "lm-eval": (_lm_eval, partial(_analyze, rank_pattern=r"r(\d+)"), 2.0),
    "peft-comparison": (_comparisons, partial(_analyze, metric="accuracy"), 2.0),
    "trainer-figures": (_figures, _read_figures, 2.0),
}  # fmt: skip

# ---- Settings ----


def _sweep_yaml(place: Path) -> None:
    settings = {
        "model": "some/model",
        "ranks": [4, 8],
        "learning-rate": [1e-3, 2e-3],
        "margin": 0.02,
        "budget": 120,
    }
    _text(place, "# A sweep\n" + yaml.safe_dump(settings), "sweep.yaml")


def _read_yaml(place: Path) -> None:
    from rankwise.sweeps.config import make_config, read_yaml

    make_config(read_yaml(place / "sweep.yaml"))


TOOL_FILES: dict[str, dict[str, Any]] = {
    "axolotl": {"base_model": "some/model", "adapter": "lora", "lora_r": 16, "lora_alpha": 32,
                "datasets": [{"path": "a.jsonl", "type": "chat_template"}], "learning_rate": 1e-4},
    "llama-factory": {"model_name_or_path": "some/model", "finetuning_type": "lora", "stage": "sft",
                      "lora_rank": 8, "do_train": True, "dataset": "a", "lora_alpha": 16},
    "trl": {"model_name_or_path": "some/model", "use_peft": True, "lora_r": 8, "dataset_name": "a/b"},
}  # fmt: skip


def _tool_file(tool: str, place: Path) -> None:
    _text(place, "# mine\n" + yaml.safe_dump(TOOL_FILES[tool]), "my.yaml")


def _read_tool_file(tool: str, place: Path) -> None:
    from rankwise.trainers.sweep_file import sweep_file

    sweep_file(tool, place / "my.yaml")


SETTINGS: dict[str, tuple[Make, Make, float]] = {
    "sweep-yaml": (_sweep_yaml, _read_yaml, 3.0),
    **{f"{tool}-yaml": (partial(_tool_file, tool), partial(_read_tool_file, tool), 2.0) for tool in TOOL_FILES},
}  # fmt: skip

READERS: dict[str, tuple[Make, Make, float]] = {**DATA, **MODELS, **RESULTS, **SETTINGS}
