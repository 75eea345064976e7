"""``rankwise resize``: adapters on disk, cut and grown."""

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.lora import read_adapter, write_adapter
from rankwise.lora.adapter import factor_pairs
from tests.cli.test_main import rankwise, refuse, run_here
from tests.lora.adapters import make_adapter


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_adapter(make_adapter(6), tmp_path / "source")
    return tmp_path / "source"


def ranks(directory: Path) -> list[int]:
    return [pair.rank for pair in factor_pairs(read_adapter(directory))]


def test_a_cut_says_what_is_left_and_that_energy_is_not_quality(
    source: Path, tmp_path: Path
) -> None:
    done = rankwise("resize", source, tmp_path / "out", "--rank", 2)
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert first == "Rank 6 to 2 in 4 layers; parameters of A and B: 1,080 to 360."
    assert second.startswith("Energy kept: ")
    assert second.endswith("Energy is not quality: compare held-out losses before and after.")
    assert last == f"Adapter: {tmp_path / 'out'}"
    assert ranks(tmp_path / "out") == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "first", "rest"),
    [
        (["--rank", "9"], "Rank 6 to 9 in 4 layers", "delta-W is unchanged."),
        (["--rank", "6"], "Rank 6 to 6 in 4 layers", "delta-W is unchanged."),
        (["--energy", "0.9"], "Rank 6 to ", "Energy kept: 9"),
        (["--rank-pattern", "auto:500"], "Rank 6 to ", "Energy kept: "),
    ],
)
def test_the_other_ways(
    source: Path, tmp_path: Path, options: list[str], first: str, rest: str, capfd: Any
) -> None:
    done = run_here(capfd, "resize", source, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(first)
    assert lines[1].startswith(rest)


def test_json_is_all_that_stdout_holds(source: Path, tmp_path: Path, capfd: Any) -> None:
    done = run_here(
        capfd, "resize", source, tmp_path / "out", "--rank-pattern", "auto:500", "--json"
    )
    content = json.loads(done.stdout)
    assert content["params_before"] == 1080
    assert content["params"] <= 500
    assert [layer["rank"] for layer in content["layers"]] == ranks(tmp_path / "out")
    assert 0 < content["energy"] < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "no size given; allowed is exactly one of --rank, --energy and --rank-pattern"),
        (["--rank", "4", "--energy", "0.9"], "--rank and --energy given; allowed is exactly one"),
        (["--rank", "0"], "rank 0: allowed is a whole number, at least 1"),
        (["--rank", "-4"], "rank -4"),
        (["--rank", "2.5"], "rank '2.5'"),
        (["--rank", "all"], "rank 'all'"),
        (
            ["--rank", "13"],
            "rank 13 is larger than a layer allows: at most 12, the smaller side of h.0.v",
        ),
        (["--energy", "0"], "energy '0': allowed is a number above 0 and at most 1"),
        (["--energy", "1.01"], "energy '1.01'"),
        (["--energy", "95"], "did you mean 0.95?"),
        (["--energy", "nan"], "energy 'nan'"),
        (["--rank-pattern", "500"], "rank_pattern '500': allowed is auto:PARAMS"),
        (["--rank-pattern", "auto:"], "PARAMS ''"),
        (["--rank-pattern", "auto:179"], "rank 1 in every layer takes 180"),
        (["--rank", "9", "--seed", "x"], "seed 'x'"),
        (["--ranks", "9"], "did you mean '--rank'"),
    ],
)
def test_bad_requests_are_one_line_and_exit_2(
    source: Path, tmp_path: Path, options: list[str], words: str, capfd: Any
) -> None:
    assert words in refuse(capfd, "resize", source, tmp_path / "out", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_places_that_cannot_serve(source: Path, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    for where, to, words in [
        (source, source, "is not empty (it holds adapter_"),
        (source, tmp_path / "file", "is a file"),
        (tmp_path / "absent", tmp_path / "out", "no such directory"),
        (tmp_path / "model", tmp_path / "out", "has no adapter_config.json"),
    ]:
        assert words in refuse(capfd, "resize", where, to, "--rank", 2)
    assert ranks(source) == [6, 6, 6, 6]
