"""Results of lm-eval-harness."""

from pathlib import Path
from typing import Any

import pytest

from rankwise import analyze
from tests.analysis.results import refused, runs, save


def result(adapter: str | None, **values: Any) -> dict[str, Any]:
    """Return a result, shortened, of adapters in PEFT's format over a Hugging Face model."""
    arguments = "pretrained=base,dtype=bfloat16" + (f",peft={adapter}" if adapter else "")
    return {
        "results": {
            task: {"alias": task, **measured} for task, measured in values.items()
        },
        "versions": dict.fromkeys(values, 1.0),
        "n-shot": dict.fromkeys(values, 0),
        "higher_is_better": {"wiki": {"oddness": False}},
        "config": {"model": "hf", "model_args": arguments, "random_seed": 0, "limit": None},
        "model_name": "base",
    }  # fmt: skip


def save_results(directory: Path, adapters: bool = True) -> Path:
    """Save the results of runs, whose values support rank 16; the base model's are beside them."""
    for rank, seed, loss in runs().to_numpy():
        name = f"r{rank:g}-s{seed:g}"
        place = directory / name / f"out__{name}"
        place.mkdir(parents=True)
        arc = {"acc,none": 1 - loss / 2, "acc_stderr,none": 0.01}
        wiki = {
            "oddness,none": loss,
            "word_perplexity,none": 10 + loss,
            "word_perplexity_stderr,none": "N/A",
        }
        content = result(f"out/{name}" if adapters else None, arc_easy=arc, wiki=wiki)
        save(place / "results_2026-05-01T10-00-00.000000.json", content)
    return directory


def test_the_rank_is_asked_for_and_the_advice_works(tmp_path: Path) -> None:
    for adapters in (True, False):  # with merged adapters, only the path says the rank
        path = save_results(tmp_path / str(adapters), adapters)
        line = refused(path, metric="arc_easy/acc")
        assert "do not say the rank" in line
        assert "has rank 16, give" in line or "has rank 4, give" in line
        assert "--rank-pattern 'r(\\d+)'" in line
        found = analyze(path, metric="arc_easy/acc", rank_pattern=r"r(\d+)", margin=0.01)
        assert (found.decision.rank, found.decision.metric) == (16, "arc_easy_acc")
        assert sorted(found.evidence["seed"].unique()) == [1, 2, 3]
        assert any("standard errors are over examples" in note for note in found.notes)


def test_one_of_several_tasks_is_asked_for(tmp_path: Path) -> None:
    path = save_results(tmp_path)
    line = refused(path, rank_pattern=r"r(\d+)")
    assert "holds results of 2 tasks; compare one, such as --metric arc_easy/acc (metric)" in line
    assert "has no metric 'bleu'" in refused(path, rank_pattern=r"r(\d+)", metric="bleu")


def test_the_file_says_the_direction(tmp_path: Path) -> None:
    found = analyze(save_results(tmp_path), metric="oddness", rank_pattern=r"r(\d+)", margin=0.02)
    assert (found.decision.rank, found.decision.metric) == (16, "wiki_oddness")


def test_the_rank_is_read_from_an_adapter_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_results(tmp_path / "eval")
    for rank, seed, _ in runs().to_numpy():
        place = tmp_path / "out" / f"r{rank:g}-s{seed:g}"
        place.mkdir(parents=True)
        save(place / "adapter_config.json", {"r": 2 * int(rank)})
    monkeypatch.chdir(tmp_path)
    assert analyze(path, metric="arc_easy/acc", margin=0.01).decision.rank == 32


def test_the_base_model_is_left_out_and_counted(tmp_path: Path) -> None:
    path = save_results(tmp_path)
    save(path / "results_base.json", result(None, arc_easy={"acc,none": 0.99}))
    found = analyze(path, metric="arc_easy/acc", rank_pattern=r"r(\d+)", margin=0.01)
    assert len(found.evidence) == 12
    assert "1 results of a base model without adapter are left out" in found.notes


def test_files_of_an_adapter_are_joined_and_later_ones_count(tmp_path: Path) -> None:
    for rank in (4, 8):
        for date, task, value in (("01", "arc", 0.1), ("02", "arc", 0.5), ("03", "mmlu", 0.6)):
            place = tmp_path / task / f"r{rank}"
            place.mkdir(parents=True, exist_ok=True)
            content = result(f"out/r{rank}", **{task: {"acc,none": value}})
            save(place / f"results_2026-05-{date}T10-00-00.000000.json", content)
    found = analyze(tmp_path, rank_pattern=r"r(\d+)", metric="arc/acc,none")
    assert found.evidence["arc_acc"].tolist() == [0.5, 0.5]
    assert "2 results are left out for later ones of the same adapter and task" in found.notes


def test_repeats_may_be_distinguished_by_the_pattern(tmp_path: Path) -> None:
    for name in ("r4x1", "r4x2", "r8x1", "r8x2"):
        content = result(f"out/{name}", arc={"acc,none": 0.5 + int(name[-1]) / 100})
        save(tmp_path / f"results_{name}.json", content)
    assert r"give rank_pattern a group for the seed, such as (?P<seed>\d+)" in refused(
        tmp_path, rank_pattern=r"r(\d+)"
    )
    found = analyze(tmp_path, rank_pattern=r"r(\d+)x(?P<seed>\d+)")
    assert found.evidence["seed"].tolist() == [1, 2, 1, 2]
