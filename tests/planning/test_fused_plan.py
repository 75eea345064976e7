"""``rankwise plan --engine fused``: what fits a device, and what a sweep takes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rankwise.cli import main
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.errors import RequestError
from rankwise.models.base_model import load_base
from rankwise.planning.plan import plan
from rankwise.report.plan_report import print_plan
from rankwise.tasks.base import Encoded
from rankwise.tasks.losses import CompletionObjective
from tests.engine.parity import TRIALS
from tests.tiny_models import cores, save_tiny_lm, write_config

BATCH, LENGTH = 4, 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("llama"), "llama")


def test_the_plan_of_a_trial_is_what_the_engine_measures(tmp_path: Path) -> None:
    directory = save_tiny_lm("llama", tmp_path)
    base = load_base(str(directory), CompletionObjective(), ["all-linear"], [4])
    positions = [list(range(LENGTH - 1))] * BATCH
    examples = Encoded(
        ids=tuple(range(BATCH)),
        input_ids=[[5] * LENGTH] * BATCH,
        labels=tuple([[5] * (LENGTH - 1)] * BATCH),
        positions=positions,
    )
    config = TrainingConfig(batch_size=BATCH)
    with cores(1):
        (finished,) = FusedEngine(base, examples, examples, config).train(TRIALS[:1])
        settings: dict[str, Any] = {"ranks": [TRIALS[0].rank], "precision": "fp32", "device": "cpu"}
        sizes = {"batch_size": BATCH, "seq_len": LENGTH}
        document = plan(str(directory), engine="fused", **settings, **sizes).as_dict()
    peak = document["ranks"][0]["memory"]["peak_allocated"]
    assert peak == pytest.approx(finished.peak_memory_bytes, rel=0.01)
    assert "peak_eval" not in document["ranks"][0]["memory"]


def test_one_trial_more_would_not_fit(model: str) -> None:
    settings: dict[str, Any] = {"ranks": [4, 64], "engine": "fused", "batch_size": 8}
    ample = plan(model, memory="10GB", **settings).sweep
    assert ample is not None and ample.pack_bytes is not None
    assert (ample.at_once, ample.micro_batch_tokens) == (16, None)
    fitting = plan(model, memory=ample.pack_bytes, **settings).sweep
    tight = plan(model, memory=ample.pack_bytes - 1, **settings).sweep
    assert fitting is not None and tight is not None
    assert (fitting.at_once, tight.at_once) == (16, 15)
    alone = plan(model, memory="1MB", **settings)
    assert alone.sweep is not None and alone.rows[-1].fits is False
    assert alone.sweep.at_once == 0


def test_attention_in_blocks_keeps_more_than_the_kernel_for_any_lengths(model: str) -> None:
    settings: dict[str, Any] = {"ranks": [4], "engine": "fused", "device": "H100"}
    kernels = ("sdpa", "varlen", "blocks")
    peaks = [
        plan(model, attention=kernel, **settings).rows[0].memory.peak_allocated
        for kernel in kernels
    ]
    assert peaks[0] == peaks[1] <= peaks[2]


def test_the_work_of_a_head_is_not_that_of_every_token(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ranks": [4], "engine": "fused", "seq_len": 64}
    model = write_config(tmp_path, "distilbert")
    sizes = [plan(model, task_type="SEQ_CLS", num_labels=n, **settings).sweep for n in (2, 2000)]
    assert sizes[0] is not None and sizes[1] is not None
    assert sizes[0].flop_per_token == sizes[1].flop_per_token


def test_texts_longer_than_the_model_has_positions_for_are_refused(tmp_path: Path) -> None:
    model = write_config(tmp_path, "distilbert")
    with pytest.raises(RequestError, match=r"^seq_len 5000: this model has positions for at most"):
        plan(model, task_type="SEQ_CLS", engine="fused", seq_len=5000)


def test_the_hours_are_those_of_all_trials(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--engine fused --ranks 4,8,16 --seeds 3 --seq-len 100 --train-examples 1000"
    assert (
        main(["plan", model, *options.split(), "--epochs", "2", "--tflops", "0.5", "--json"]) == 0
    )
    content = json.loads(capsys.readouterr().out)
    assert content["request"]["engine"] == "fused"
    sweep = content["sweep"]
    assert sweep["trials"] == 9
    assert sweep["tokens"] == 9 * 2 * 1000 * 100
    assert sweep["hours"] == pytest.approx(
        sweep["tokens"] * sweep["flop_per_token"] / 0.5e12 / 3600
    )
    assert sweep["tokens"] / sweep["tokens_per_second"] == pytest.approx(3600 * sweep["hours"])
    assert sweep["at_once"] is None  # no device is named
    assert {row["quantization"] for row in content["by_quantization"]} == {"none", "int8", "nf4"}


def test_the_table_says_what_fits_and_what_is_missing_for_the_hours(model: str) -> None:
    def text(**settings: Any) -> str:
        out = io.StringIO()
        print_plan(plan(model, engine="fused", ranks=[4, 8], **settings), Console(file=out))
        return out.getvalue()

    plain = text(memory="10GB")
    assert "Fits: 16 trials of rank 8 at once, in" in plain
    assert "Sweep: ranks 4, 8 x 2 seeds = 4 trials" in plain
    assert "Time: --tflops and --train-examples give the hours" in plain
    assert "evaluation peak" not in plain
    timed = text(tflops=1.0, train_examples=1000)
    assert "each on 1 x 1,000 examples of 512 tokens: 2.05 million tokens" in timed
    assert "minutes of training at 1 TFLOP/s" in timed
    assert "Does not fit: one trial of rank 8 needs" in text(memory="1MB")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tflops": 3.0}, r"^tflops 3.0 is a setting of the fused engine; add --engine fused$"),
        ({"engine": "fused", "use_dora": True}, r"^use_dora True is not for engine fused, which"),
        (
            {"engine": "fused", "attention": "eager"},
            r"^attention 'eager': allowed is sdpa, varlen, bl",
        ),
        (
            {"attention": "blocks"},
            r"^attention 'blocks': allowed is eager, sdpa, flash with engine",
        ),
        ({"engine": "fused", "attention": "varlen", "device": "T4"}, r"not bf16 on T4; take sdpa"),
        ({"engine": "fused", "optimizer": "lion"}, r"^optimizer 'lion': allowed is adamw, adamw"),
        ({"engine": "fused", "micro_batch_tokens": 0}, r"^micro_batch_tokens 0: allowed is auto"),
        ({"engine": "fused", "tflops": -1}, r"^tflops -1: allowed is a number above 0"),
        ({"engine": "fused", "task_type": "TOKEN_CLS"}, r"classifiers of texts, not TOKEN_CLS"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    model: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        plan(model, ranks=[4], **settings)


def test_the_request_of_the_other_engine_is_as_it_was(model: str) -> None:
    document = plan(model, ranks=[4]).as_dict()
    assert "sweep" not in document
    assert not {"engine", "seeds", "epochs", "tflops"} & document["request"].keys()
