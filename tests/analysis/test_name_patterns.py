"""Ranks and seeds in names of runs."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from rankwise import analyze
from rankwise.analysis.name_patterns import number_in_name, rank_in_name, suggest_pattern
from rankwise.errors import RequestError


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["out/r4-s1", "out/r8-s1"], r"r(\d+)"),
        (["lr1e-3_r8", "lr1e-3_r16"], r"(?<![a-zA-Z])[rR][=:_-]?(\d+)"),
        (["lora_r: 8", "lora_r: 16"], r"lora_r(?:ank)?[=:_ -]*(\d+)"),
        (["rank=8", "rank=16"], r"rank[=:_ -]*(\d+)"),
        (["lora-8", "lora-16", "base"], r"(?<![a-zA-Z])lora[=:_-]?(\d+)"),
        (["a", "b"], None),
        (["r8-s1", "r8-s2"], None),  # one rank
    ],
)
def test_a_pattern_is_suggested_that_finds_the_ranks(names: list[str], pattern: str | None) -> None:
    assert suggest_pattern(names) == pattern
    for name in names if pattern else ():
        rank = rank_in_name(pattern or "", name)[0]
        assert name == "base" or (rank is not None and str(rank) in name)


def test_groups_may_be_named() -> None:
    assert rank_in_name(r"s(?P<seed>\d+)-r(?P<rank>\d+)", "s3-r16") == (16, 3)
    assert rank_in_name(r"s(?P<seed>\d+)-r(\d+)", "s3-r16") == (16, 3)
    assert rank_in_name(r"r(\d+)-s(?P<seed>\d+)", "r16-s3") == (16, 3)
    assert rank_in_name(r"r(\d+)", "base") == (None, None)
    with pytest.raises(RequestError, match="finds 'x' in 'rx'; allowed is a group of digits"):
        rank_in_name(r"r(.)", "rx")


@pytest.mark.parametrize(("name", "seed"), [("r8-seed1", "1"), ("r8_s2", "2"), ("r8-steps3", None)])
def test_a_seed_is_found_after_its_word(name: str, seed: str | None) -> None:
    assert number_in_name(name, ("seed", "s")) == seed


def test_a_pattern_with_many_repeats_is_tried_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"a_r{rank}_b_seed{seed}_c,0.{rank}" for rank in (4, 8) for seed in range(50)]
    (tmp_path / "runs.csv").write_text("\n".join(["run,loss", *rows]))
    started = []
    run = subprocess.run

    def counted(*arguments: Any, **options: Any) -> Any:
        started.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    pattern = r".*_r(?P<rank>\d+)_.*_seed(?P<seed>\d+)_.*"
    assert analyze(tmp_path / "runs.csv", rank_pattern=pattern).decision.recommended == 4
    assert len(started) == 1
