"""Part c: the memory that `rankwise.plan` gives, held against what the GPU allocated."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rankwise
from benchmarks.on_gpu.device import free_memory, peak_allocated
from benchmarks.on_gpu.lengths import make_examples
from benchmarks.on_gpu.models import Scale, Size, random_base, random_model, save_config
from benchmarks.on_gpu.ways import RANK, RATE, make_trial
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.models.compat import quiet_libraries

BATCH = 4
ENGINES = ("reference", "fused")
STEPS = 3  # the optimizer's states exist from the second step on


def measure(scale: Scale, left: Callable[[], float]) -> dict[str, Any]:
    """Compare plan and measurement for three sizes, two bases, with and without checkpointing."""
    rows: list[dict[str, Any]] = []
    length = scale.lengths[len(scale.lengths) // 2]
    on_gpu = scale.device.type == "cuda"
    cases = [
        (name, quantization, checkpointing, engine)
        for name in ("1B", "8B", "135M")
        for quantization in ("none", "nf4")
        for checkpointing in (False, True)
        for engine in ENGINES
    ]
    if not on_gpu:  # bytes allocated on a CPU are not counted: the plans alone are tried
        cases = cases[:2]
    done = 0
    for name, quantization, checkpointing, engine in cases:
        if left() <= 0:
            break
        done += 1
        case = {"size": name, "quantization": quantization, "checkpointing": checkpointing}
        row: dict[str, Any] = {**case, "engine": engine, "batch": BATCH, "length": length}
        size = scale.sizes[name]
        try:
            row["planned"] = planned_bytes(size, scale, length, row)
            row["measured"] = measured_bytes(size, scale, length, row)
            if row["measured"]:
                row["error"] = row["planned"] / row["measured"] - 1
        except (rankwise.RankwiseError, RuntimeError, ImportError) as error:
            row["failed"] = " ".join(str(error).split())[:200]
        rows.append(row)
        free_memory(scale.device)
    return {"rows": rows, "not_run": len(cases) - done}


def planned_bytes(size: Size, scale: Scale, length: int, row: dict[str, Any]) -> int:
    """Return the peak that the plan gives for a trial, in bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        save_config(size, Path(scratch))
        settings: dict[str, Any] = {
            "ranks": [min(RANK, size.number("hidden_size") // 4)],
            "batch_size": row["batch"],
            "seq_len": length,
            "precision": scale.precision,
            "quantization": row["quantization"],
            "gradient_checkpointing": row["checkpointing"],
        }
        if row["engine"] == "fused":
            settings["engine"] = "fused"
        if scale.device.type == "cuda":
            settings["device"] = "H100"
        plan = rankwise.plan(scratch, **settings).as_dict()
    return int(plan["ranks"][0]["memory"]["peak_allocated"])


def measured_bytes(size: Size, scale: Scale, length: int, row: dict[str, Any]) -> int | None:
    """Return the peak that a GPU allocates for the trial of a row; None on a CPU."""
    run = _reference_steps if row["engine"] == "reference" else _fused_steps
    return run(size, scale, length, row)


def _reference_steps(size: Size, scale: Scale, length: int, row: dict[str, Any]) -> int | None:
    """Return the peak of steps of PEFT as tutorials write them, in bytes."""
    base = random_model(size, scale)
    if row["quantization"] != "none":
        quantize(base)
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules="all-linear")
    with quiet_libraries():
        model: Any = get_peft_model(base, lora)
    if row["checkpointing"]:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, fused=True)
    ids = torch.randint(3, 1000, (row["batch"], length), device=scale.device)

    def step() -> None:
        with torch.autocast(scale.device.type, torch.bfloat16, scale.dtype == torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def steps() -> None:
        for _ in range(STEPS - 1):
            step()

    step()
    return peak_allocated(scale.device, steps)


def _fused_steps(size: Size, scale: Scale, length: int, row: dict[str, Any]) -> int | None:
    """Return the peak of a trial in the fused engine, in bytes."""
    base = random_base(size, scale)
    if row["quantization"] != "none":
        quantize(base.model)
    config = TrainingConfig(
        batch_size=row["batch"],
        max_steps=STEPS,
        precision=scale.precision,
        gradient_checkpointing="on" if row["checkpointing"] else "off",
    )
    examples = make_examples([length] * (row["batch"] * STEPS))
    engine = FusedEngine(base, examples, examples.take([0]), config)
    rank = min(RANK, size.number("hidden_size") // 4)
    return peak_allocated(scale.device, lambda: list(engine.train([make_trial(rank)])))


def quantize(model: Any) -> None:
    """Replace the linear layers of the blocks by bitsandbytes' 4-bit ones, as loading would."""
    import bitsandbytes as bnb

    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or name.endswith("lm_head"):
            continue
        parent, _, child = name.rpartition(".")
        weight = layer.weight
        small = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=False,
            compute_dtype=weight.dtype,
            compress_statistics=False,
            quant_type="nf4",
        )
        small.weight = bnb.nn.Params4bit(
            weight.data.cpu(), requires_grad=False, compress_statistics=False, quant_type="nf4"
        )
        setattr(model.get_submodule(parent), child, small.to(weight.device))
    model.is_loaded_in_4bit = True  # PEFT asks for it
