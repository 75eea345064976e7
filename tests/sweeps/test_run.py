import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import rankwise
from rankwise import RequestError, SweepConfig
from rankwise.sweeps.config import make_config
from rankwise.sweeps.progress import Silent
from rankwise.sweeps.run import open_run
from tests.conftest import make_reviews
from tests.factories import Notes
from tests.tiny_models import save_tiny, save_tiny_lm

LAYOUT = {"sweep.json", "decision.json", "report.html", "best", "export", "trials"}
RATES = (5e-3, 1e-2)


def settings(tiny_model: Path, data: Path, out: Path) -> dict[str, object]:
    return {
        "model": str(tiny_model),
        "data": data,
        "ranks": (2, 4),
        "learning_rate": 5e-3,
        "margin": 0.5,
        "out": out,
    }


def test_the_directory_has_the_documented_layout(swept: Path) -> None:
    assert {path.name for path in swept.iterdir() if path.name[0] != "."} == LAYOUT
    for trial in (swept / "trials").iterdir():
        files = {str(path.relative_to(trial)) for path in trial.rglob("*") if path.is_file()}
        assert files == {
            "config.json", "metrics.jsonl", "evidence.parquet",
            "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "SHA256SUMS",
        }  # fmt: skip
    names = {trial.name for trial in (swept / "trials").iterdir()}
    tried = {f"r{rank}-lr{rate:g}-seed0" for rank in (2, 4, 8) for rate in RATES}
    assert tried < names
    assert len(names) == len(tried) + 3  # the second seed, at each rank's best rate


def test_evidence_is_a_row_per_trial_and_held_out_example(swept: Path) -> None:
    evidence = pd.concat(
        [pd.read_parquet(path) for path in swept.glob("trials/*/evidence.parquet")]
    )
    assert len(evidence) == 9 * 80  # a fifth of 400 examples is held out
    assert set(evidence["score"]) == {0.0, 1.0}
    assert np.isfinite(evidence["loss"]).all()
    assert evidence.groupby(["rank", "seed", "learning_rate"])["example_id"].nunique().eq(80).all()


def test_the_stored_decision_follows_from_the_stored_evidence(swept: Path) -> None:
    from rankwise.store.records import read_evidence

    on_disk = json.loads((swept / "decision.json").read_text())
    again = rankwise.select(read_evidence(swept), margin=0.5).as_dict()
    for key in ("verdict", "rank", "answer", "evidence", "caveats", "margin", "confidence"):
        assert on_disk[key] == again[key]
    assert on_disk["rank"] == 2  # half a nat is a wide margin
    for row in on_disk["table"]:
        assert row["train_seconds"] > 0
        assert row["peak_memory_bytes"] > 0
        assert row["adapter_bytes"] > 4 * row["trainable_params"]


def test_best_loads_in_peft_and_scores_the_same(swept: Path, tiny_model: Path) -> None:
    """As a user would: no rankwise, a base loaded anew, texts tokenised anew."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    decision = json.loads((swept / "decision.json").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    model = PeftModel.from_pretrained(base, swept / "best").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    table = pd.read_csv(swept.parent / "reviews.csv")
    kept = pd.read_parquet(swept / "trials" / decision["test"]["trial"] / "evidence.parquet")
    with torch.no_grad():
        for row in kept.itertuples():
            text, label = table.loc[row.example_id, ["text", "label"]]
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
            np.testing.assert_allclose(
                row.loss, -torch.log_softmax(logits, 0)[int(label)].item(), rtol=1e-4
            )


def test_the_test_part_is_seen_by_no_trial_and_scored_for_the_chosen_one(swept: Path) -> None:
    from rankwise.store.records import read_evidence
    from rankwise.tasks.load import load_task

    task = load_task(SweepConfig(data=swept.parent / "reviews.csv"))
    used = set(task.train.ids) | set(read_evidence(swept)["example_id"])
    assert not used & set(task.test.ids)
    test = json.loads((swept / "decision.json").read_text())["test"]
    assert test["examples"] == len(task.test) == 40
    assert test["trial"].startswith("r2-")


def test_python_call_and_resume(tiny_model: Path, reviews: Path, tmp_path: Path) -> None:
    first = rankwise.sweep(**settings(tiny_model, reviews, tmp_path / "out"))
    assert first.decision.rank == 2
    assert first.directory == tmp_path / "out"
    assert set(first.evidence["rank"]) == {2, 4}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").rglob("*")}
    again = rankwise.sweep(**settings(tiny_model, reviews, tmp_path / "out"))
    assert again.decision == first.decision
    assert again.evidence.equals(first.evidence)
    assert files == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "trials").rglob("*")
    }


def test_an_extended_sweep_equals_one_with_all_seeds_from_the_start(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    rankwise.sweep(**settings(tiny_model, reviews, tmp_path / "out"), seeds=1)
    extended = rankwise.sweep(
        **settings(tiny_model, reviews, tmp_path / "out"), seeds=2, extend=True
    )
    fresh = rankwise.sweep(**settings(tiny_model, reviews, tmp_path / "fresh"), seeds=2)
    assert extended.evidence.equals(fresh.evidence)


def test_a_sweep_whose_every_trial_diverges_ends_undetermined(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    result = rankwise.sweep(
        **settings(tiny_model, reviews, tmp_path / "out"), lora_alpha="fixed:3e38"
    )
    assert (result.decision.verdict, result.best) == ("undetermined", None)
    assert result.report.exists()
    assert result.evidence["diverged"].all()


def test_a_sweep_that_learns_nothing_chooses_no_rank(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    result = rankwise.sweep(
        **{**settings(tiny_model, reviews, tmp_path / "out"), "learning_rate": 1e-7}
    )
    assert (result.decision.verdict, result.best) == ("undetermined", None)
    # 120 reviews, one class in every other: the held-out part holds as many of each
    assert "guessing by the classes' shares gives 0.6931" in result.decision.evidence
    again = rankwise.analyze(tmp_path / "out", margin=0.5).decision
    assert (again.verdict, again.answer) == ("undetermined", result.decision.answer)


def test_a_single_held_out_example_still_gets_a_report(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.csv"
    pd.DataFrame(
        {"text": ["neither of the others"], "label": [pd.read_csv(reviews)["label"].iloc[0]]}
    ).to_csv(alone)
    result = rankwise.sweep(
        **settings(tiny_model, reviews, tmp_path / "out"), eval_data=alone, seeds=1
    )
    assert result.decision.verdict == "undetermined"
    assert "1 held-out example cannot show how much examples vary" in result.decision.answer
    assert result.best is not None and result.decision.provisional
    assert all(f"{row.loss_mean:.4f}" in result.report.read_text() for row in result.decision.table)


def test_separate_held_out_data_and_several_classes(tiny_model: Path, tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held.parquet"
    names = np.array(["one", "two", "three"])
    make_reviews(90).assign(label=names[np.arange(90) % 3]).to_json(
        train, orient="records", lines=True
    )
    make_reviews(30, seed=1).assign(label=names[np.arange(30) % 3]).to_parquet(held_out)
    result = rankwise.sweep(model=str(tiny_model), data=train, eval_data=held_out, ranks=[1, 2], learning_rate=1e-2,
                            seeds=1, margin=1.0, out=tmp_path / "out")  # fmt: skip
    # The words tell two classes, not these three: nothing can be learnt.
    assert "guessing by the classes' shares gives 1.0986" in result.decision.evidence
    assert result.decision.test is None
    assert len(result.evidence) == 2 * 30


def test_public_names_are_shown_before_they_are_used() -> None:
    code = "import rankwise, sys; print(*dir(rankwise)); sys.exit('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"sweep", "plan", "select", "SweepConfig", "__version__"} <= set(shown)


def test_one_rank_has_nothing_to_be_compared_with(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="rank 2 alone"):
        rankwise.sweep(**{**settings(tiny_model, reviews, tmp_path / "out"), "ranks": (2,)})
    with pytest.raises(RequestError, match="either a config or its fields"):
        rankwise.sweep(SweepConfig(), ranks=(2, 4))
    for call in (rankwise.sweep, rankwise.dry_run):
        for config in ("tinybert", {"ranks": [4, 8]}, {}):
            with pytest.raises(RequestError, match=r"config .*allowed is a SweepConfig; .*model="):
                call(config)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_the_fused_engine_decides_as_the_reference_does(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    fused = rankwise.sweep(**settings(tiny_model, reviews, tmp_path / "fused"), seeds=1)
    reference = rankwise.sweep(
        **settings(tiny_model, reviews, tmp_path / "reference"), seeds=1, engine="reference"
    )
    assert fused.decision.rank == reference.decision.rank
    columns = ["rank", "seed", "learning_rate", "example_id", "score", "diverged"]
    assert fused.evidence[columns].equals(reference.evidence[columns])
    assert list(fused.evidence["loss"]) == pytest.approx(list(reference.evidence["loss"]), rel=1e-4)


def test_a_memory_limit_packs_trials_and_the_report_says_so(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    alone = rankwise.sweep(**settings(tiny_model, reviews, tmp_path / "alone"))
    heard = Notes()
    packed = rankwise.sweep(
        **settings(tiny_model, reviews, tmp_path / "packed"), max_memory="200MB", progress=heard
    )
    assert any("trials train at once" in note for note in heard.notes)
    assert list(packed.evidence["loss"]) == pytest.approx(list(alone.evidence["loss"]), rel=1e-4)
    sizes = {row.pack_size for row in packed.decision.table}
    assert max(size or 0 for size in sizes) > 1
    assert "trials trained together" in packed.report.read_text()
    assert "trials trained at once" not in alone.report.read_text()


def test_memory_is_checked_at_the_quantization_of_the_sweep(reviews: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    model = save_tiny("llama", tmp_path / "model", **sizes)  # 24 MB in fp32
    request = {
        "model": str(model),
        "data": reviews,
        "ranks": (2, 4),
        "max_length": 8,
        "max_memory": "20MB",
        "gradient_checkpointing": "off",
        "micro_batch_tokens": 64,
    }
    with pytest.raises(RequestError, match=r"rank 2 needs about .*, and max_memory is 19.1 MiB"):
        open_run(make_config({**request, "out": tmp_path / "fp32"}), Silent())
    with open_run(
        make_config({**request, "out": tmp_path / "nf4", "quantization": "nf4"}), Silent()
    ) as run:
        assert run.fit.at_once >= 1
    assert (
        json.loads((tmp_path / "nf4" / "sweep.json").read_text())["settings"]["quantization"]
        == "nf4"
    )


def test_a_base_beyond_the_fused_engine_trains_with_the_reference(
    reviews: Path, tmp_path: Path
) -> None:
    model = save_tiny("deberta-v2", tmp_path / "deberta")
    heard = Notes()
    result = rankwise.sweep(**settings(model, reviews, tmp_path / "out"), progress=heard)
    assert result.decision.table[0].seeds == 2
    (note,) = [note for note in heard.notes if "engine" in note]
    assert note.startswith("the reference engine trains instead of the fused one: ")


def test_the_settings_in_force_of_a_language_model_are_said_and_recorded(tmp_path: Path) -> None:
    words = [{"prompt": f"the film {n}", "completion": "was good"} for n in range(40)]
    pd.DataFrame(words).to_json(tmp_path / "data.jsonl", orient="records", lines=True)
    request = {
        "model": str(save_tiny_lm("llama", tmp_path / "model")),
        "data": tmp_path / "data.jsonl",
        "ranks": (2, 4),
        "lr_scheduler": "cosine",
        "out": tmp_path / "out",
    }
    heard = Notes()
    with open_run(make_config(request), heard) as run:
        assert run.config.warmup_ratio == 0.1
    (note,) = [note for note in heard.notes if note.startswith("training: ")]
    assert "batches of 8 examples" in note
    assert "cosine learning rate after a warm-up of 10 % of the steps" in note
    recorded = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (recorded["settings"]["warmup_ratio"], recorded["settings"]["precision"]) == (
        0.1,
        "fp32",
    )
    (tmp_path / "out" / "trials" / "r2-lr0.001-seed0").mkdir(parents=True)
    # The default may be given, a machine's setting may change, and no other.
    same = {**request, "warmup_ratio": 0.1, "precision": "fp32", "checkpoint_minutes": 1}
    with open_run(make_config(same), Notes()):
        pass
    for name, value in {"warmup_ratio": 0.2, "lora_dropout": 0.1, "max_steps": 3}.items():
        with pytest.raises(RequestError, match=f"{name} is {value}, was"):
            open_run(make_config({**request, name: value}), Notes())


def test_default_ranks_that_a_small_model_does_not_allow_are_left_out(
    tiny_model: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"model": tiny_model, "data": reviews, "out": tmp_path / "out"}
    planned = rankwise.dry_run(**request)
    limit = 16  # the smaller side of the tiny model's layers
    assert [row.rank for row in planned.ranks] == [rank for rank in (4, 8, 16, 32) if rank <= limit]
    with pytest.raises(RequestError, match="rank 64 is larger than a target layer allows"):
        rankwise.dry_run(**request, ranks=(4, 64))
