"""Tables of results."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankwise.analysis.read import read_results
from rankwise.errors import RequestError
from tests.analysis.results import PUBLISHED, refused

TABLE = pd.DataFrame(
    [(rank, seed, 1e-3, example, rank / 100 + seed + example / 10) for rank in (4, 8) for seed in (0, 1)
     for example in (0, 1, 2)],
    columns=["rank", "seed", "learning_rate", "example_id", "loss"],
)  # fmt: skip


def write(path: Path, content: str | pd.DataFrame) -> Path:
    path.write_text(content if isinstance(content, str) else content.to_csv(index=False))
    return path


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("sweep.csv", lambda path: TABLE.to_csv(path, index=False)),
        ("sweep.tsv", lambda path: TABLE.to_csv(path, index=False, sep="\t")),
        ("sweep.jsonl", lambda path: TABLE.to_json(path, orient="records", lines=True)),
        ("sweep.parquet", lambda path: TABLE.to_parquet(path)),
    ],
)
def test_every_format_gives_the_same_evidence(
    tmp_path: Path, name: str, save: Callable[[Path], None]
) -> None:
    save(tmp_path / name)
    imported = read_results([tmp_path / name])
    expected = TABLE.assign(diverged=False)[
        ["rank", "seed", "learning_rate", "example_id", "diverged", "loss"]
    ]
    pd.testing.assert_frame_equal(imported.evidence, expected, check_exact=False, rtol=1e-12)
    assert imported.metrics == ("loss",)
    assert imported.train_loss is None


def test_the_gpt2_table_of_the_lora_paper(tmp_path: Path) -> None:
    published = PUBLISHED["gpt2_medium_e2e"]
    table = pd.DataFrame(published["rows"], columns=published["columns"])
    imported = read_results([write(tmp_path / "gpt2.csv", table)])
    assert imported.metrics == ("loss", "bleu", "nist", "meteor", "rouge_l", "cider")
    assert imported.evidence["rank"].tolist() == [2**power for power in range(11)]
    assert imported.evidence["loss"].tolist() == table["val_loss"].tolist()
    assert imported.evidence["cider"].tolist() == table["cider"].tolist()
    assert "example_id" not in imported.evidence
    assert (imported.evidence[["seed", "learning_rate"]] == 0).all(axis=None)
    assert "no seed is recorded; it is taken as 0" in imported.notes
    assert "loss from 'val_loss'" in imported.notes[0]


def test_repeated_runs_need_a_column_that_distinguishes_them(tmp_path: Path) -> None:
    accuracy = PUBLISHED["peft_metamathqa_repeats"]["test_accuracy"]
    table = pd.DataFrame(
        [
            (int(name[1:]), rerun, value)
            for name in ("r32", "r64")
            for rerun, value in enumerate(accuracy[name])
        ],
        columns=["r", "rerun", "test_accuracy"],
    )
    path = write(tmp_path / "peft.csv", table)
    line = refused(path)
    assert "6 rows repeat another, such as rank 32" in line
    assert "seed_column or example_column" in line
    imported = read_results([path], seed_column="rerun")
    assert imported.metrics == ("accuracy",)
    assert imported.evidence.query("rank == 64")["accuracy"].tolist() == accuracy["r64"]
    assert imported.evidence["seed"].tolist() == [0, 1, 2, 3] * 2


def test_columns_are_found_by_name_unless_the_user_names_them(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "LoRA_r,LR,Seed,Eval_Loss,dim,notes\n8,1e-4,3,0.5,16,x\n4,1e-4,3,0.6,8,y\n",
    )
    imported = read_results([path])
    assert imported.evidence.to_dict("records")[0] == {
        "rank": 8, "seed": 3, "learning_rate": 1e-4, "diverged": False, "loss": 0.5,
    }  # fmt: skip
    said = imported.notes[0]
    assert all(
        f"{own} from '{column}'" in said
        for own, column in [("rank", "LoRA_r"), ("learning_rate", "LR")]
    )
    assert "left out dim, notes" in said
    assert read_results([path], rank_column="dim").evidence["rank"].tolist() == [16, 8]


def test_row_numbers_are_not_example_ids(tmp_path: Path) -> None:
    counted = read_results([write(tmp_path / "a.csv", "index,rank,loss\n0,4,0.5\n1,8,0.4\n")])
    assert "example_id" not in counted.evidence
    assert any("'index' is left out" in note for note in counted.notes)
    shared = read_results([write(tmp_path / "b.csv", "index,rank,loss\n0,4,0.5\n0,8,0.4\n")])
    assert shared.evidence["example_id"].tolist() == [0, 0]
    named = read_results([tmp_path / "a.csv"], example_column="index")
    assert named.evidence["example_id"].tolist() == [0, 1]


def test_a_column_named_for_one_role_is_not_used_for_another(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "rank,id,loss\n4,0,0.5\n4,1,0.5\n8,0,0.4\n8,1,0.4\n")
    imported = read_results([path], seed_column="id")
    assert imported.evidence["seed"].tolist() == [0, 1, 0, 1]
    assert "example_id" not in imported.evidence


def test_example_ids_may_be_text_and_metrics_true_or_false(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "rank,example_id,correct\n4,q-1,True\n4,q-2,False\n8,q-1,True\n8,q-2,True\n",
    )
    imported = read_results([path])
    assert imported.metrics == ("correct",)
    assert imported.evidence["correct"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert imported.evidence["example_id"].tolist() == ["q-1", "q-2"] * 2


def test_large_example_ids_stay_distinct(tmp_path: Path) -> None:
    ids = [2**60, 2**60 + 1]  # the same as floats
    table = pd.DataFrame({"rank": [4, 4, 8, 8], "example_id": ids * 2, "loss": 0.5})
    assert (
        read_results([write(tmp_path / "a.csv", table)]).evidence["example_id"].tolist() == ids * 2
    )


@pytest.mark.parametrize("written", ["true", "True", "1", "1.0"])
def test_diverged_trials_may_lack_a_loss(tmp_path: Path, written: str) -> None:
    path = write(
        tmp_path / "a.csv",
        f"rank,seed,loss,diverged\n4,0,0.5,0\n4,1,nan,{written}\n8,0,0.4,false\n",
    )
    imported = read_results([path])
    assert imported.evidence["diverged"].tolist() == [False, True, False]
    assert np.isnan(imported.evidence["loss"][1])


def test_several_tables_are_joined(tmp_path: Path) -> None:
    one = write(tmp_path / "r4.csv", "rank,seed,eval_loss,accuracy\n4,0,0.5,0.8\n")
    other = write(tmp_path / "r8.csv", "lora_rank,seed,val_loss\n8,0,0.4\n")
    imported = read_results([one, other])
    assert imported.evidence[["rank", "loss"]].values.tolist() == [[4, 0.5], [8, 0.4]]
    assert imported.metrics == ("loss",)
    assert (
        "loss is called 'eval_loss', 'val_loss'; they are comparable if the held-out data are the same"
        in imported.notes
    )
    assert any(
        "'accuracy' is missing in 1 of 2 results (r8.csv)" in note for note in imported.notes
    )
    with pytest.raises(
        RequestError, match=r"'accuracy' is missing in 1 of 2 results \(r8.csv\).*: loss"
    ):
        read_results([one, other], metric="accuracy")
    with pytest.raises(
        RequestError, match=r"1 row repeats another, such as rank 4.*r4.csv, r4.csv"
    ):
        read_results([one, one])
    per_example = write(tmp_path / "e.csv", TABLE)
    with pytest.raises(
        RequestError, match=r"e\.csv holds results per example and r4\.csv does not"
    ):
        read_results([one, per_example])


def test_the_requested_metric_comes_first(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "rank,val_loss,bleu,quality,train_loss\n4,0.5,60,1,0.3\n8,0.4,61,2,0.2\n",
    )
    assert read_results([path]).metrics == ("loss", "bleu", "train_loss")
    assert read_results([path], metric="BLEU").metrics == ("bleu", "loss", "train_loss")
    assert read_results([path], metric="val_loss").metrics[0] == "loss"
    assert read_results([path], metric="quality").metrics == (
        "quality",
        "loss",
        "bleu",
        "train_loss",
    )


@pytest.mark.parametrize("column", ["run_id", "Name", "number", "params.rerun"])
def test_the_column_that_the_advice_names_distinguishes_repeats(
    tmp_path: Path, column: str
) -> None:
    rows = [(rank, f"{seed}f{rank}" if column != "number" else seed, loss + seed / 1000)
            for rank, loss in ((4, 0.9), (8, 0.8)) for seed in range(3)]  # fmt: skip
    path = write(tmp_path / "a.csv", pd.DataFrame(rows, columns=["lora_r", column, "eval_loss"]))
    assert "4 rows repeat another" in (line := refused(path))
    assert f"such as --seed-column {column!r}" in line
    imported = read_results([path], seed_column=column)
    assert imported.evidence["seed"].nunique() == (3 if column == "number" else 6)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("dim,loss\n4,0.5\n", {}, "no column that is plainly the rank; name it with rank_column; columns: dim, loss"),
        ("rank,loss\n4,0.5\n", {"rank_column": "rnak"}, "rank_column 'rnak' is not in.*did you mean 'rank'"),
        ("rank,loss\n4,0.5\n", {"seed_column": "run"}, "seed_column 'run' is not in.*columns: rank, loss"),
        ("rank,loss\n4,0.5\n", {"seed_column": "rank", "rank_column": "rank"}, "both 'rank'; name two columns"),
        ("rank,train_loss\n4,0.5\n8,0.4\n", {}, "no metric but that of training.*give --metric train_loss"),
        ("rank,loss\nr=4,0.5\nr=8,0.4\n", {}, r"'rank' of 'a.csv' holds texts.*--rank-pattern 'rank|r"),
        ("rank,quality\n4,0.5\n", {}, "no column that is plainly a metric; name it with metric; columns: rank, q"),
        ("rank,loss\n4,0.5\n", {"metric": "los"}, "there is no metric 'los'.*did you mean 'loss'.*metrics: loss"),
        ("rank,good\n4,0.5\n", {"metric": "godo"}, "for the metric 'godo'.*did you mean 'good'.*columns: rank, good"),
        ("rank,loss\n4,0.5\n-8,0.4\n", {}, r"rank: -8\.?0? in 1 of 2 rows \(a\.csv row 2\); allowed are whole numbers of at"),
        ("rank,loss\n4,0.5\n7.5,0.4\n", {}, r"rank: 7\.5 in 1 of 2 rows"),
        ("rank,loss\n4,0.5\nr8,0.4\n", {}, "rank: r8 in 1 of 2 rows"),
        ("rank,loss\n4,0.5\nTrue,0.4\n", {}, "rank: True in 1 of 2 rows"),
        ("rank,loss\n0,0.5\n,0.4\n", {}, "no results with a LoRA rank.*2 of 2 rows are left out"),
        ("rank,loss\n4,0.5\n1e300,0.4\n", {}, r"rank: 1e\+300 in 1 of 2 rows"),
        ("rank,seed,loss\n4,a,0.5\n8,0,0.4\n", {}, r"seed: a in 1 of 2 rows.*whole numbers"),
        ("rank,lr,loss\n4,-1,0.5\n8,1,0.4\n", {}, r"learning_rate: -1\.?0? in 1 of 2 rows.*above 0"),
        ("rank,loss\n4,nan\n8,0.4\n16,inf\n", {}, r"loss: nan, inf in 2 of 3 rows \(a\.csv row 1, 3\); allowed are"),
        ("rank,val_loss\n4,0.5\n8,n/a\n", {}, r"loss \('val_loss'\): n/a in 1 of 2 rows \(a\.csv row 2\)"),
        ("rank,loss\n4,0.5\n8,\n", {}, r"loss: nan in 1 of 2 rows \(a\.csv row 2\).*column diverged"),
        ("rank,loss,diverged\n4,0.5,no\n8,0.4,maybe\n", {}, r"'diverged'.*no, maybe in 2 rows.*true and false"),
        ("rank,seed,loss\n4,0,1\n4,1,1\n4,1,1\n", {}, r"1 row repeats.*rank 4, seed 1.*row 2, 3\).*one of each"),
        ("rank,seed,id,loss\n4,0,7,1\n4,0,7,1\n8,0,7,1\n", {}, r"seed 0.*example 7 \(a\.csv row 1, 2\)"),
        ("rank,example_id,loss\n4,7,1\n4,,1\n8,7,1\n", {}, r"example_id: nan in 1 of 3 rows"),
        ("", {}, "is empty"),
        ("rank,loss\n", {}, "no rows"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(
    tmp_path: Path, content: str, options: dict[str, str], words: str
) -> None:
    line = refused(write(tmp_path / "a.csv", content), **options)
    assert re.search(words, line), line


def test_bad_cells_of_json_lines_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"rank": [4], "loss": 0.5}\n{"rank": 8, "loss": 0.4}\n')
    assert "rank: [4] in 1 of 2 rows (a.jsonl row 1)" in refused(path)
    path = write(
        tmp_path / "b.jsonl", '{"rank": 4, "loss": {"mean": 0.5}}\n{"rank": 8, "loss": 0.4}\n'
    )
    assert "loss: {'mean': 0.5} in 1 of 2 rows (b.jsonl row 1)" in refused(path)


def test_a_large_table_is_read_in_seconds(tmp_path: Path) -> None:
    levels = [[2**power for power in range(8)], range(10), range(2_000)]
    table = pd.MultiIndex.from_product(levels, names=["rank", "seed", "example_id"]).to_frame(
        index=False
    )
    table = table.assign(loss=np.random.default_rng(0).random(len(table)))
    table.to_parquet(tmp_path / "a.parquet")
    start = time.perf_counter()
    assert len(read_results([tmp_path / "a.parquet"]).evidence) == 160_000
    assert time.perf_counter() - start < 5  # a loop over rows takes longer
