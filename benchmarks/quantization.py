"""Does the choice of rank depend on the precision of the base model?

    python benchmarks/quantization.py [--quantizations none,nf4] [--ranks 2,8,32] [--seeds 2] ...
    python benchmarks/quantization.py --print benchmarks/results/quantization.json

Sweeps the built-in task once for each quantisation, every rank at its own learning rate. Every
sweep is kept in --out, and the same command resumes, also with more --seeds. Writes --results;
prints the decisions side by side, then planned and measured memory, and time. The plan assumes PEFT
with padded batches, as --engine reference trains; the fused engine needs less for activations.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import rankwise

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package benchmarks

from benchmarks import results_file
from rankwise.formatting import plain_bytes, seconds
from rankwise.report.compare_sweeps import (
    ComparedSweep,
    print_sweep_comparison,
    read_compared_sweeps,
)
from rankwise.report.progress_bar import ProgressBar
from rankwise.sweeps.environment import environment
from rankwise.tasks import samples
from rankwise.tasks.load import load_task

RESULTS = Path(__file__).parent / "results" / "quantization.json"


def main() -> None:
    """Sweep what is missing, then print what there is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quantizations", default="none,nf4")
    parser.add_argument("--ranks", default="2,8,32")
    parser.add_argument("--learning-rate", default="auto")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train-examples", type=int, default=1000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--engine", default="fused")
    results_file.add_options(parser, "quantization-out", RESULTS)
    options = parser.parse_args()
    if options.printed is not None:
        show(json.loads(options.printed.read_text()))
        return
    settings = {
        name: getattr(options, name)
        for name in ("ranks", "seeds", "train_examples", "max_length", "engine")
    }
    settings["learning_rate"] = options.learning_rate
    kinds = options.quantizations.split(",")
    directories = [options.out / kind for kind in kinds]
    for kind, directory in zip(kinds, directories, strict=True):
        with ProgressBar() as progress:
            progress.note(f"quantization {kind}")
            config = rankwise.SweepConfig(**settings, quantization=kind, extend=True, out=directory)
            rankwise.sweep(config, progress=progress)
    lines = [line.as_dict() for line in read_compared_sweeps(directories)]
    memory = {kind: planned_and_frozen(kind, rankwise.SweepConfig(**settings)) for kind in kinds}
    results = {
        "settings": settings,
        "environment": asdict(environment()),
        "lines": lines,
        "memory": memory,
    }
    results_file.write_results(results, options.results)
    show(results)


def planned_and_frozen(kind: str, config: rankwise.SweepConfig) -> dict[str, Any]:
    """Return planned memory for a batch of the longest texts, and the bytes of the loaded base."""
    from rankwise.models.base_model import load_base
    from rankwise.models.quantization import resident_tensors

    model, task = str(samples.minilm_directory()), load_task(config)
    base = load_base(model, task.objective, config.target_modules, config.ranks, quantization=kind)
    longest = max(
        task.encoder(task.train, base.tokenizer, config.max_length or task.objective.max_length)[
            0
        ].lengths
    )
    plan = rankwise.plan(
        model,
        ranks=config.ranks,
        batch_size=config.batch_size,
        seq_len=longest,
        precision="fp32",
        quantization=kind,  # type: ignore[arg-type]
        task_type="SEQ_CLS",
        num_labels=task.objective.settings["num_labels"],
        device="cpu",
    )
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in
                resident_tensors(base.model)}  # fmt: skip
    return {
        "frozen_planned": plan.rows[0].memory.weights,
        "frozen_measured": sum(storages.values()),
        "step_planned": {str(row.rank): row.memory.peak_allocated for row in plan.rows},
    }


def show(results: dict[str, Any]) -> None:
    """Print the decisions, memory and time."""
    lines = [ComparedSweep.from_dict(one) for one in results["lines"]]
    print_sweep_comparison(lines)
    table = Table(
        title=f"Memory and time, {results['settings']['engine']} engine", title_justify="left"
    )
    for name in (
        "base",
        "rank",
        "frozen base: plan",
        "measured",
        "step: plan",
        "measured",
        "training",
    ):
        table.add_column(name, justify="right")
    for line, (kind, memory) in zip(lines, results["memory"].items(), strict=True):
        for row in line.table:
            table.add_row(
                kind,
                str(row["rank"]),
                plain_bytes(memory["frozen_planned"]),
                plain_bytes(memory["frozen_measured"]),
                plain_bytes(memory["step_planned"][str(row["rank"])]),
                plain_bytes(row["peak_memory_bytes"]),
                seconds(row["train_seconds"]),
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
