import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise.engine.trial import Trial
from rankwise.errors import RequestError
from rankwise.trainers.figures import (
    FiguresJudge,
    figures_task,
    goes_up,
    read_example_losses,
    read_metric,
)
from rankwise.trainers.left_adapter import UnusableTrialError
from tests.trainers.fake_trainer import write_adapter

TRIAL = Trial(rank=4, seed=0, learning_rate=1e-3, lora_alpha=8)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def state(*rows: dict[str, Any], best: int | None = None) -> str:
    return json.dumps({"global_step": 20, "best_global_step": best, "log_history": list(rows)})


def test_a_trainer_s_last_evaluation_counts(out: Path) -> None:
    rows = [
        {"step": 10, "eval_loss": 2.0},
        {"step": 15, "loss": 9.0},
        {"step": 20, "eval_loss": 1.5},
    ]
    (out / "trainer_state.json").write_text(state(*rows))
    assert read_metric("eval_loss", out) == 1.5


def test_the_evaluation_of_the_checkpoint_that_was_kept_counts(out: Path) -> None:
    rows = [{"step": 10, "eval_loss": 1.0}, {"step": 20, "eval_loss": 1.5}]
    (out / "checkpoint-20").mkdir()
    (out / "checkpoint-20/trainer_state.json").write_text(state(*rows, best=10))
    assert read_metric("eval_loss", out) == 1.0


def test_metrics_in_lines(out: Path) -> None:
    (out / "metrics.jsonl").write_text(
        '{"step": 1, "test/nll": 2.0}\n{"step": 2, "test/nll": 1.0}\n'
    )
    assert read_metric("test/nll", out) == 1.0


def test_json_that_was_printed(out: Path) -> None:
    (out.parent / "log.txt").write_text('12%|##\n{"wer": 0.5}\n{broken\nend\n{"wer": 0.25}\n')
    assert read_metric("wer", out) == 0.25


def test_a_metric_that_is_not_there(out: Path) -> None:
    (out / "trainer_state.json").write_text(state({"step": 1, "eval_loss": 1.0, "eval_wer": 1.0}))
    with pytest.raises(RequestError) as caught:
        read_metric("eval_los", out)
    assert "did you mean 'eval_loss'" in str(caught.value)
    assert "there are: eval_loss, eval_wer" in str(caught.value)
    with pytest.raises(RequestError, match="there are no numbers"):
        (out / "empty").mkdir()
        read_metric("eval_loss", out / "empty")


def test_losses_of_examples(out: Path) -> None:
    rows = pd.DataFrame({"example_id": [0, 1], "loss": [0.5, 1.5], "extra": "x"})
    rows.to_json(out / "rankwise_evidence.jsonl", orient="records", lines=True)
    expected = pd.DataFrame({"example_id": [0, 1], "loss": [0.5, 1.5], "score": [-0.5, -1.5]})
    pd.testing.assert_frame_equal(read_example_losses(out), expected)
    (out / "rankwise_evidence.jsonl").unlink()
    rows.assign(score=1.0).to_parquet(out / "rankwise_evidence.parquet")
    assert read_example_losses(out)["score"].tolist() == [1.0, 1.0]
    rows.drop(columns="loss").to_parquet(out / "rankwise_evidence.parquet")
    with pytest.raises(RequestError, match="lacks loss; it has example_id, extra"):
        read_example_losses(out)
    (out / "rankwise_evidence.parquet").write_bytes(b"x")
    with pytest.raises(RequestError, match="cannot be read"):
        read_example_losses(out)


def test_ids_may_be_texts(out: Path) -> None:
    rows = [{"example_id": "007", "loss": 1}, {"example_id": "a", "loss": 2.5}]
    (out / "rankwise_evidence.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    read = read_example_losses(out)
    assert read["example_id"].tolist() == ["007", "a"]
    assert read["loss"].tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"example_id": [None, 1], "loss": [1.0, 2.0]}, "has example_id nan"),
        ({"example_id": [1, 1], "loss": [1.0, 2.0]}, "has example_id 1; allowed are ids that diff"),
        ({"example_id": [0, 1], "loss": ["bad", "2"]}, "has loss 'bad'; allowed are numbers"),
        ({"example_id": [], "loss": []}, "has no rows"),
    ],
)
def test_losses_that_cannot_be_used(out: Path, rows: dict[str, list[Any]], words: str) -> None:
    pd.DataFrame(rows).to_parquet(out / "rankwise_evidence.parquet")
    with pytest.raises(UnusableTrialError) as caught:
        FiguresJudge(None, False, None).judge(TRIAL, out)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_examples_than_those_of_earlier_trials(out: Path) -> None:
    judge = FiguresJudge(None, False, None, [0, 1])
    for ids in ([1, 0], [1, 2]):
        rows = pd.DataFrame({"example_id": ids, "loss": [1.0, 2.0]})
        rows.to_parquet(out / "rankwise_evidence.parquet")
        if 0 in ids:
            assert len(judge.judge(TRIAL, out).evidence) == 2
            continue
        with pytest.raises(UnusableTrialError, match="2 examples, 1 of them among the 2"):
            judge.judge(TRIAL, out)


def test_a_loss_that_is_not_finite_has_diverged(out: Path) -> None:
    (out / "rankwise_evidence.jsonl").write_text('{"example_id": 0, "loss": NaN}\n')
    assert FiguresJudge(None, False, None).judge(TRIAL, out).diverged


def test_more_of_a_metric_may_be_better(out: Path) -> None:
    (out.parent / "log.txt").write_text('{"eval_rewards/accuracies": 0.75}\n')
    judged = FiguresJudge("eval_rewards/accuracies", True, None).judge(TRIAL, out)
    assert judged.evidence.to_dict("records") == [{"example_id": -1, "loss": -0.75, "score": 0.75}]
    assert judged.adapter == {}


def test_an_adapter_beside_the_figures_is_kept_and_checked(out: Path) -> None:
    (out.parent / "log.txt").write_text('{"eval_loss": 0.75}\n')
    write_adapter(out, 4, 8, 0)
    judged = FiguresJudge("eval_loss", False, None).judge(TRIAL, out)
    assert judged.evidence["loss"].tolist() == [0.75]
    assert judged.adapter_config["r"] == 4
    write_adapter(out, 5, 8, 0)
    with pytest.raises(UnusableTrialError, match="rank 5"):
        FiguresJudge("eval_loss", False, None).judge(TRIAL, out)


def test_a_figure_that_is_not_finite_has_diverged(out: Path) -> None:
    (out.parent / "log.txt").write_text('{"eval_loss": NaN}\n')
    assert FiguresJudge("eval_loss", False, None).judge(TRIAL, out).diverged


def test_directions_and_their_words() -> None:
    assert not goes_up("eval_loss", None)
    assert goes_up("eval_accuracy", None)
    assert goes_up("eval_margin", "max")
    task = figures_task("eval_accuracy", None)
    assert (task.objective.score, task.objective.unit) == (
        "eval_accuracy", "negative eval_accuracy per trial",
    )  # fmt: skip
    assert figures_task(None, None).objective.unit == "loss per example"
