"""The course exercise: cost and accuracy of LoRA at ranks 4, 8, 16, 32 and 64.

Prints estimates for a model of the size of Llama-2 7B, then trains on the built-in task, which
takes about six minutes on two cores:

    python examples/rank_comparison.py
"""

import argparse

from rich.console import Console
from rich.table import Table

from rankwise import RankExperiment, estimate_training_memory, run_rank_comparison
from rankwise.report.progress_bar import ProgressBar

RANKS = (4, 8, 16, 32, 64)


def estimates(console: Console) -> None:
    """Print the memory of a training step, rank by rank."""
    table = Table(
        title="Estimated: 32 blocks of width 4096, adapters on 2 matrices a block, 1 x 512 tokens"
    )
    for name in (
        "rank",
        "adapter parameters",
        "fewer than in full",
        "bf16 base, GiB",
        "NF4 base, GiB",
        "full fine-tuning, GiB",
    ):
        table.add_column(name, justify="right")
    for rank in RANKS:
        plain = estimate_training_memory(rank, modules_per_layer=2)
        quantised = estimate_training_memory(rank, precision="nf4", modules_per_layer=2)
        table.add_row(
            str(rank),
            f"{plain['lora_params']:,}",
            f"{plain['compression']:,.0f} times",
            f"{plain['total_bytes'] / 2**30:.2f}",
            f"{quantised['total_bytes'] / 2**30:.2f}",
            f"{plain['full_finetuning_bytes'] / 2**30:.1f}",
        )
    console.print(table)


def experiments(console: Console, results: list[RankExperiment]) -> None:
    """Print what the trained ranks gave."""
    table = Table(
        title="Measured: MiniLM-L6 on Rotten Tomatoes sentences, each rank at its own learning rate"
    )
    for name in (
        "rank",
        "alpha",
        "trainable",
        "learning rate",
        "accuracy",
        "loss",
        "seconds",
        "peak MiB",
    ):
        table.add_column(name, justify="right")
    for one in results:
        table.add_row(
            str(one.rank),
            f"{one.alpha:g}",
            f"{one.trainable_params:,}",
            f"{one.learning_rate:g}",
            f"{one.accuracy:.1%}",
            f"{one.loss:.4f}",
            f"{one.training_time_seconds:.1f}",
            f"{one.peak_memory_bytes / 2**20:.0f}",
        )
    console.print(table)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="trials per rank (default 1)")
    parser.add_argument(
        "--train-examples", type=int, help="train on this many sentences (default: the sample's)"
    )
    options = parser.parse_args()
    console = Console()
    estimates(console)
    with ProgressBar() as progress:
        results = run_rank_comparison(
            RANKS, seeds=options.seeds, train_examples=options.train_examples, progress=progress
        )
    experiments(console, results)


if __name__ == "__main__":
    main()
