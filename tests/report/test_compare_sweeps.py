"""Several sweeps compared: their labels, the spread of losses over ranks, the table and the plot."""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import rankwise
from rankwise.cli import main
from rankwise.errors import RequestError
from rankwise.report import compare_sweeps
from rankwise.report.compare_sweeps import (
    ComparedSweep,
    print_sweep_comparison,
    read_compared_sweeps,
    write_sweep_comparison_plot,
)
from rankwise.store.records import read_evidence
from tests.conftest import make_reviews
from tests.factories import write_sealed
from tests.report.browser import needs_browser, overlaps

POLICIES = {"r": (4, False), "2r": (8, False), "fixed:32": (32, False), "rslora": (16, True)}
RATES = (2e-3, 5e-3)


@pytest.fixture(scope="module")
def directories(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A sweep for each policy, of one seed."""
    home = tmp_path_factory.mktemp("policies")
    make_reviews(120).to_csv(home / "reviews.csv", index=False)
    found = []
    for policy in POLICIES:
        found.append(home / policy.replace(":", "-"))
        rankwise.sweep(  # type: ignore[call-arg]
            model=str(tiny_model), data=home / "reviews.csv", ranks=(2, 4), learning_rates=RATES, seeds=1, margin=2.0,
            max_steps=4, lora_alpha=policy, out=found[-1],
        )  # fmt: skip
    return found


def test_each_alpha_policy_sets_alpha_and_scaling_of_its_trials(directories: list[Path]) -> None:
    for directory, (alpha, use_rslora) in zip(directories, POLICIES.values(), strict=True):
        for trial in directory.glob("trials/r4-*"):
            config = json.loads((trial / "adapter" / "adapter_config.json").read_text())
            assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (
                4,
                alpha,
                use_rslora,
            )
    losses = [read_evidence(directory)["loss"].mean() for directory in directories]
    assert len(set(losses)) == len(losses)  # no policy trains as another does


def test_labels_name_the_differing_settings_and_spreads_the_effect_of_rates(
    directories: list[Path],
) -> None:
    lines = read_compared_sweeps(directories)
    assert [line.label for line in lines] == [
        "lora alpha r", "lora alpha 2r", "lora alpha fixed:32", "lora alpha rslora:16"
    ]  # fmt: skip
    for directory, line in zip(directories, lines, strict=True):
        means = read_evidence(directory).groupby(["rank", "learning_rate"])["loss"].mean()
        assert line.spread_at == {
            rate: pytest.approx(abs(means[2, rate] - means[4, rate])) for rate in RATES
        }  # fmt: skip
        own = {row["rank"]: row["learning_rate"] for row in line.table}
        assert line.spread == pytest.approx(abs(means[2, own[2]] - means[4, own[4]]))
        assert ComparedSweep.from_dict(json.loads(json.dumps(line.as_dict()))) == line


def test_a_rate_that_only_the_second_seed_tried_is_compared(
    directories: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once tries its two rates with a seed each, and may keep the adapter of the second."""
    (before,) = read_compared_sweeps(directories[:1])
    evidence = read_evidence(directories[0])
    rate = before.table[-1]["learning_rate"]
    of_second = (evidence["rank"] == 4) & (evidence["learning_rate"] == rate)
    monkeypatch.setattr(
        compare_sweeps, "read_evidence", lambda _: evidence.assign(seed=of_second.astype(int))
    )
    assert read_compared_sweeps(directories[:1]) == [before]
    monkeypatch.setattr(compare_sweeps, "read_evidence", lambda _: evidence[~of_second])
    (lacking,) = read_compared_sweeps(directories[:1])
    assert lacking.spread is None


def test_the_command_prints_and_draws_the_comparison(
    directories: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *map(str, directories[:2]), "--plot", str(tmp_path / "plot.html")]) == 0
    out = capsys.readouterr().out
    assert "lora alpha 2r" in out
    assert "all at 0.002" in out
    page = (tmp_path / "plot.html").read_text()
    assert '"lora alpha r"' in page
    assert '"lora alpha 2r"' in page
    assert main(["report", *map(str, directories[:2]), "--json"]) == 0
    assert [line["label"] for line in json.loads(capsys.readouterr().out)] == [
        "lora alpha r",
        "lora alpha 2r",
    ]


def test_each_sweep_names_its_recommended_rank_and_how_sure_it_is(
    provisional: Path, swept: Path, directories: list[Path]
) -> None:
    (found,), decided = read_compared_sweeps([provisional]), rankwise.analyze(provisional)
    assert (found.rank, found.recommended) == (None, 8)
    assert decided.decision.recommended == 8
    reached = json.loads((provisional / "decision.json").read_text())["confidence_reached"]
    sure = f"{math.floor(100 * reached)} % sure, 95 % asked"
    assert found.as_dict()["sure"] == found.sure == sure
    (selected,) = read_compared_sweeps([swept])
    assert (selected.rank, selected.recommended) == (2, 2)
    nothing = replace(found, recommended=None)
    recorded = {name: value for name, value in selected.as_dict().items() if name != "sure"}
    del recorded["recommended"]  # as in comparisons that earlier versions recorded
    out = io.StringIO()
    lines = [found, selected, nothing, ComparedSweep.from_dict(recorded)]
    print_sweep_comparison(lines, Console(file=out, width=200))
    (row,) = [line for line in out.getvalue().splitlines() if "recommended rank" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:] == [f"8 (provisional: {sure})", f"2 ({selected.sure})", "none yet", "2"]


def test_sweeps_that_cannot_be_compared_are_refused(
    directories: list[Path], swept: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="differ in data: their losses cannot be compared"):
        read_compared_sweeps([directories[0], swept])
    other = tmp_path / "other"
    shutil.copytree(directories[1], other)
    sweep = json.loads((other / "sweep.json").read_text())
    sweep["task"]["loss"] = "squared error"
    write_sealed(other / "sweep.json", sweep)
    with pytest.raises(RequestError, match="differ in loss"):
        read_compared_sweeps([directories[0], other])
    write_sweep_comparison_plot(read_compared_sweeps([other]), tmp_path / "plot.html")
    assert "Held-out loss, squared error" in (tmp_path / "plot.html").read_text()
    with pytest.raises(RequestError, match="holds no finished sweep: it has no sweep"):
        read_compared_sweeps([directories[0], tmp_path])
    arguments: list[Any] = ["report", directories[0], "--plot", tmp_path / "plot.html"]
    assert main([str(argument) for argument in arguments]) == 2


@needs_browser
@pytest.mark.parametrize("width", [500, pytest.param(1280, marks=pytest.mark.slow)])
def test_texts_of_the_plot_do_not_overlap(tmp_path: Path, width: int) -> None:
    lines = []
    for label, rates in (
        ("lora alpha r", (0.01, 0.004, 0.0005)),
        ("lora alpha 2r", (0.0105, 0.004, 0.002)),
    ):
        table = tuple(
            {"rank": rank, "loss_mean": 0.01 * rank, "loss_ci": [-0.02, 0.3], "learning_rate": rate}
            for rank, rate in zip((2, 4, 8), rates, strict=True)
        )
        lines.append(
            ComparedSweep(label, "nats per completion token", tmp_path, None, table, None, {})
        )
    out = io.StringIO()
    print_sweep_comparison(lines, Console(file=out, width=140))
    assert "0.0200 [0.000, 0.300] at 0.01" in out.getvalue()  # what of an interval is possible
    write_sweep_comparison_plot(lines, tmp_path / "plot.html")
    assert overlaps(tmp_path / "plot.html", tmp_path / "profile", width) == []
