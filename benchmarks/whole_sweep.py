"""The time of a whole sweep, from the command to the decision, and where it goes.

`python benchmarks/engine.py` prints it. The sweep trains eight adapters on 800 short texts; beside
it stands the loop that tutorials write for the same eight adapters: PEFT and the Trainer, one
after the other, each with its training and its evaluation. Both run as processes of their own, so
that imports count in both.
"""

import argparse
import compileall
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

import rankwise

RANKS, SEEDS, TEXTS, RATE = (4, 8, 16, 32), (0, 1), 800, 1e-3
SAMPLE_SECONDS = 0.01
IMPORTS = "imports"
TRAINING, SCORING = "training", "scoring"

PHASES = {
    ("load", "load_task"): "data",
    ("run_context", "encode"): "data",
    ("memory_fit", "fit_to_machine"): "plan of memory",
    ("base_model", "load_base"): "base model",
    ("model", "unsupported_reason"): "check that the base runs packed",
    ("measurement", "seconds"): "steps that time a trial alone",
    ("measurement", "peak_memory"): "step that measures memory",
    ("run_context", "chance_loss"): "score of the untrained base",
    ("directory", "add"): "trials written",
    ("finish", "_test_score"): "test part",
    ("html", "report_page"): "report",
    ("finish", "finish"): "decision and exports",
}
"""Parts of a sweep, by the stem of the file and the name of the function that does each."""


def phase_of(frame: FrameType | None) -> str:
    """Return the part of a sweep that a thread is in: that of its innermost function with a name.

    A module that is being imported counts as imports, whoever asked for it.
    """
    found = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib"):
            return IMPORTS
        found = found or PHASES.get((Path(code.co_filename).stem, code.co_name))
        frame = frame.f_back
    return found or "rest"


class Sampler(threading.Thread):
    """Looks at the main thread every hundredth of a second and counts the part that it is in."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[str, float] = defaultdict(float)
        self.stopped = threading.Event()

    def run(self) -> None:
        """Count until the process is told to stop."""
        main = threading.main_thread().ident
        assert main is not None
        before = time.perf_counter()
        while not self.stopped.wait(SAMPLE_SECONDS):
            now = time.perf_counter()
            self.seconds[phase_of(sys._current_frames().get(main))] += now - before
            before = now


def run_sweep(directory: Path) -> dict[str, float]:
    """Run the sweep as the command does; return the seconds of each of its parts."""
    sampler = Sampler()
    sampler.start()
    from rankwise.cli import program

    words = ["sweep", "--ranks", ",".join(map(str, RANKS)), "--seeds", str(len(SEEDS))]
    words += ["--train-examples", str(TEXTS), "--learning-rate", str(RATE)]
    sys.argv = ["rankwise", *words, "--out", str(directory)]
    try:
        program()
    except SystemExit as end:
        assert not end.code
    sampler.stopped.set()
    sampler.join()
    seconds = sampler.seconds
    packs: dict[str, float] = defaultdict(float)
    for metrics in sorted((directory / "trials").glob("*/metrics.jsonl")):
        totals = json.loads(metrics.read_text().splitlines()[-1])
        packs[TRAINING] += totals["pack_seconds"] / totals["pack_size"]
        packs[SCORING] += totals["eval_seconds"]
    seconds["rest"] -= sum(packs.values())  # the main thread waits for the threads of a pack
    return {**seconds, **packs}


def run_tutorial(directory: Path) -> dict[str, float]:
    """Train and evaluate the same adapters as tutorials do; return the seconds of the parts."""
    start = time.perf_counter()
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from rankwise.sweeps.config import SweepConfig
    from rankwise.tasks import samples
    from rankwise.tasks.classification import encode
    from rankwise.tasks.load import load_task

    seconds: dict[str, float] = defaultdict(float)
    seconds[IMPORTS] = time.perf_counter() - start
    place = samples.minilm_directory()
    tokenizer = AutoTokenizer.from_pretrained(place)
    task = load_task(SweepConfig(train_examples=TEXTS))
    parts = []
    for examples in (task.train, task.held_out):
        encoded, _ = encode(examples, tokenizer, 128)
        pairs = zip(encoded.input_ids, encoded.labels, strict=True)
        parts.append([{"input_ids": tokens, "labels": label} for tokens, label in pairs])
    for rank in RANKS:
        for seed in SEEDS:
            model = AutoModelForSequenceClassification.from_pretrained(
                place, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            )
            lora = LoraConfig(
                task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=rank, target_modules="all-linear"
            )
            trainer = Trainer(
                model=get_peft_model(model, lora),
                args=TrainingArguments(
                    output_dir=str(directory),
                    learning_rate=RATE,
                    num_train_epochs=1,
                    per_device_train_batch_size=8,
                    seed=seed,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=parts[0],
                eval_dataset=parts[1],
                data_collator=DataCollatorWithPadding(tokenizer),
            )
            seconds[TRAINING] += trainer.train().metrics["train_runtime"]
            seconds[SCORING] += trainer.evaluate()["eval_runtime"]
    return dict(seconds)


def print_whole_sweep(console: Console) -> None:
    """Run both ways, each as a process, and print their parts and the ratio of their times."""
    compileall.compile_dir(Path(rankwise.__file__).parent, quiet=1)  # as pip does on installation
    wall, parts = timed_process("sweep")
    tutorial, tutorial_parts = timed_process("tutorial")
    parts["start and end of Python"] = wall - sum(parts.values())
    table = Table(
        title=f"A whole sweep: ranks {', '.join(map(str, RANKS))}, {len(SEEDS)} seeds, "
        f"{TEXTS} texts; {wall:.1f} s"
    )
    for name in ("part", "s", "share"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        table.add_row(name, f"{seconds:.1f}", f"{seconds / wall:.1%}")
    console.print(table)
    other = wall - parts[TRAINING] - parts[SCORING]
    console.print(f"neither training nor scoring: {other:.1f} s, {other / wall:.1%} of the sweep")
    console.print(
        f"PEFT + Trainer in a loop, dropout 0: {tutorial:.1f} s "
        f"({tutorial_parts[TRAINING]:.1f} training, {tutorial_parts[SCORING]:.1f} evaluation), "
        f"{tutorial / wall:.2f} times as long as the sweep"
    )


def timed_process(way: str) -> tuple[float, dict[str, float]]:
    """Run one of the two ways in a process; return its seconds, and those of its parts."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "seconds.json"
        command = [sys.executable, __file__, way, str(Path(scratch) / "out"), str(result)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start, json.loads(result.read_text())


def main() -> None:
    """Run one of the two ways in this process and write the seconds of its parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("sweep", "tutorial"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("result", type=Path)
    asked = parser.parse_args()
    run = run_sweep if asked.way == "sweep" else run_tutorial
    seconds = run(asked.directory)
    asked.result.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
