"""From one rank to the next: grow the trained adapter, or train from new initial values?

    python benchmarks/growing.py [--lower 8] [--upper 16] [--seeds 3]

The built-in task, one epoch at a time. An adapter of the lower rank is trained for an epoch, then
for a second one, both as it is and grown to the upper rank. For comparison the upper rank is
trained from its own initial values for one epoch and for two. A second epoch restarts schedule and
optimizer and sees the examples in the same order. Prints the mean held-out loss of each way and its
gain over the lower rank's first and second epoch, paired over examples and seeds; the effect of
seeds is taken to be the same for all ways.
"""

import argparse
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table

from rankwise.decide.pairwise import Comparison
from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.optimizer import step_all
from rankwise.engine.fused.training_state import EvalAdapter, TrainingState
from rankwise.engine.trial import Trial
from rankwise.lora import grow
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import BaseModel, load_base
from rankwise.models.compat import quiet_libraries
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task

CONFIDENCE = 0.95
TRAINING = TrainingConfig(epochs=1, batch_size=8)


def main() -> None:
    """Train everything and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lower", type=int, default=8)
    parser.add_argument("--upper", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="of both ranks, in every epoch"
    )
    parser.add_argument("--train-examples", type=int, default=1000)
    options = parser.parse_args()
    task = load_task(SweepConfig(train_examples=options.train_examples))
    low, high = options.lower, options.upper
    losses: dict[str, list[np.ndarray]] = {}
    with quiet_libraries():
        base = load_base(
            str(samples.minilm_directory()), task.objective, ["all-linear"], [low, high]
        )
        train, _ = encode(task.train, base.tokenizer, 64)
        held_out, _ = encode(task.held_out, base.tokenizer, 64)
        for seed in range(options.seeds):

            def learn(
                rank: int, epochs: int = 1, start: Adapter | None = None, seed: int = seed
            ) -> Adapter:
                trial = Trial(
                    rank=rank, seed=seed, learning_rate=options.learning_rate, lora_alpha=rank
                )
                return train_from(base, train, trial, epochs, start)

            first = learn(low)
            ways = {
                f"r = {low}, one epoch": first,
                f"r = {low}, and a second epoch": learn(low, start=first),
                f"r = {low}, grown to {high}, and a second epoch": learn(
                    high, start=grow(first, high, seed)
                ),
                f"r = {high} from the start, one epoch": learn(high),
                f"r = {high} from the start, two epochs": learn(high, epochs=2),
            }
            engine = FusedEngine(base, train, held_out, TRAINING)
            for name, table in zip(ways, engine.score(list(ways.values())), strict=True):
                losses.setdefault(name, []).append(table["loss"].to_numpy())
    show(losses, options.seeds)


def train_from(
    base: BaseModel, examples: Encoded, trial: Trial, epochs: int, start: Adapter | None
) -> Adapter:
    """Train a trial, from an adapter of its rank where one is given; return what it has become."""
    training = TrainingConfig(epochs=epochs, batch_size=TRAINING.batch_size)
    state = TrainingState(trial, base, saved_modules(base), training, examples)
    if start is not None:
        loaded = EvalAdapter(base, start)
        for name, own in state.factors.items():
            own.a.copy_(loaded.factors[name].a)
            own.bt.copy_(loaded.factors[name].bt)
        for name, module in state.head.items():
            module.load_state_dict(loaded.head[name].state_dict())
    engine = FusedEngine(base, examples, examples, training)
    with packed_model(base) as model:
        base.model.train()
        while not state.finished:
            losses = engine.loop.forward_backward(model, [state], [state.batch(state.started)])
            step_all([state], losses)
    return Adapter(state.adapter(), state.adapter_config)


def show(losses: Mapping[str, list[np.ndarray]], seeds: int) -> None:
    """Print each way's loss and its gain over the lower rank's first and second epoch."""
    names = list(losses)
    ways = Comparison(
        {number: np.stack(own) for number, own in enumerate(losses.values())},
        {number: range(seeds) for number in range(len(names))},
    )
    console = Console(width=130)
    table = Table(
        title=f"Held-out loss, mean over {seeds} seeds; gains with their {CONFIDENCE:.0%} intervals"
    )
    table.add_column("way")
    for column in ("held-out loss", f"gain over {names[0]}", f"gain over {names[1]}"):
        table.add_column(column, justify="right")
    for number, name in enumerate(names):
        cells = []
        for other in (0, 1):
            gain = ways.difference(other, number)
            low, high = gain.interval(CONFIDENCE)
            cells.append("" if other == number else f"{gain.mean:+.4f} [{low:+.4f}, {high:+.4f}]")
        table.add_row(name, f"{ways.values[number].mean():.4f}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
