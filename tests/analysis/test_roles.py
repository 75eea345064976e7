"""Which column holds the rank."""

from pathlib import Path

import pandas as pd
import pytest

from rankwise import analyze
from tests.analysis.results import refused, runs, save_table


@pytest.mark.parametrize("written", ["lora_r", "r", "lora_rank", "config.peft.r", "params_lora_r"])
def test_a_rank_beside_a_lora_rank_is_a_position(tmp_path: Path, written: str) -> None:
    table = runs().rename(columns={"lora_r": written})
    table.insert(0, "rank", range(1, 13))
    found = analyze(save_table(tmp_path / "a.csv", table))
    assert found.decision.rank == 16
    said = f"the rank is taken from {written!r}; 'rank' beside it is a position or a process"
    assert any(said in note for note in found.notes)


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_alone_that_counts_is_asked_about(tmp_path: Path, first: int) -> None:
    table = runs().assign(
        model=[f"lora-r{r}-seed{s}" for r, s in runs()[["lora_r", "seed"]].to_numpy()]
    )
    table = table.assign(rank=range(first, first + 12))[["rank", "model", "eval_loss"]]
    path = save_table(tmp_path / "a.csv", table)
    line = refused(path)
    assert f"'rank' counts {first} to {first + 11}, as positions or processes do" in line
    assert "give --rank-column rank (rank_column); if 'lora-r4-seed1' has rank 4" in line
    assert analyze(path, rank_column="rank").evidence["rank"].max() == first + 11
    assert analyze(path, rank_pattern=r"r(\d+)").decision.rank == 16


def test_few_positions_beside_names_with_ranks_are_asked_about(tmp_path: Path) -> None:
    rows = [(1, "lora-r16", 0.84), (2, "lora-r8", 0.86), (3, "lora-r4", 0.92)]
    path = save_table(
        tmp_path / "a.csv", pd.DataFrame(rows, columns=["rank", "model", "eval_loss"])
    )
    assert "'rank' counts 1 to 3, as positions" in (line := refused(path))
    assert "give --rank-pattern 'r(\\d+)'" in line
    found = analyze(path, rank_pattern=r"r(\d+)", noise=0.001)
    assert found.decision.rank == 16


def test_small_sweeps_of_consecutive_ranks_are_taken(tmp_path: Path) -> None:
    table = (
        runs().assign(rank=runs()["lora_r"].map({4: 1, 8: 2, 16: 3, 32: 4})).drop(columns="lora_r")
    )
    assert analyze(save_table(tmp_path / "a.csv", table)).decision.rank == 3


def test_two_lora_ranks_that_differ_are_asked_about(tmp_path: Path) -> None:
    path = save_table(tmp_path / "a.csv", runs().assign(**{"config.peft.r": runs()["lora_r"] * 2}))
    assert "'lora_r' and 'config.peft.r' both look like the LoRA rank and differ" in refused(path)
    assert analyze(path, rank_column="config.peft.r").decision.rank == 32
    same = runs().assign(**{"config.peft.r": runs()["lora_r"]})
    assert analyze(save_table(tmp_path / "b.csv", same)).decision.rank == 16


def test_r_may_be_a_correlation(tmp_path: Path) -> None:
    table = runs().rename(columns={"lora_r": "rank"}).assign(r=0.51)
    assert analyze(save_table(tmp_path / "a.csv", table)).decision.rank == 16


def test_a_column_may_be_named_without_its_prefix(tmp_path: Path) -> None:
    table = runs().rename(columns={"lora_r": "params.width", "eval_loss": "metrics.eval_loss"})
    path = save_table(tmp_path / "a.csv", table)
    found = analyze(path, rank_column="width", metric="eval_loss")
    assert (found.decision.rank, found.decision.metric, found.decision.margin) == (16, "loss", 0.02)
    assert (
        analyze(path, rank_column="params.width", metric="metrics.eval_loss").decision.margin
        == 0.02
    )


def test_ranks_in_the_names_of_runs_are_asked_for_by_a_pattern(tmp_path: Path) -> None:
    names = [f"r{rank}_s{seed}" for rank, seed in runs()[["lora_r", "seed"]].to_numpy()]
    table = runs().assign(run=names)[["run", "eval_loss"]]
    table.loc[12] = ["base-full-ft", 0.1]
    path = save_table(tmp_path / "a.csv", table)
    assert "or, if 'r4_s1' has rank 4, give --rank-pattern 'r(\\d+)' (rank_pattern)" in refused(
        path
    )
    found = analyze(path, rank_pattern=r"r(\d+)")
    assert (found.decision.rank, len(found.evidence)) == (16, 12)
    assert any("1 of 13 rows is left out: trained without LoRA" in note for note in found.notes)
    assert "does not find a rank in every row" in refused(path, rank_pattern=r"x(\d+)")
    for pattern in ("r(", r"r\d+"):
        assert "allowed is a regular expression with a group of digits" in refused(
            path, rank_pattern=pattern
        )
