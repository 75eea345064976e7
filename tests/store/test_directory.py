import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from rankwise.errors import RankwiseError, RequestError
from rankwise.store.directory import SweepStore
from rankwise.store.records import (
    EVIDENCE_COLUMNS,
    read_sweep,
    read_train_losses,
)
from tests.factories import REQUEST, finished, request, save_sweep


def test_a_trial_is_stored_with_all_of_its_files(tmp_path: Path) -> None:
    with SweepStore(tmp_path / "out", REQUEST) as store:
        store.add(finished(), {"epochs": 1})
        trial = tmp_path / "out" / "trials" / "r4-lr0.001-seed0"
        assert torch.equal(
            load_file(trial / "adapter/adapter_model.safetensors")["lora_A.weight"],
            torch.arange(6.0).view(2, 3),
        )
        assert json.loads((trial / "adapter/adapter_config.json").read_text())["r"] == 4
        assert json.loads((trial / "config.json").read_text()) == {
            "rank": 4, "seed": 0, "learning_rate": 1e-3, "lora_alpha": 4, "use_rslora": False, "epochs": 1,
            "request": REQUEST.digest,
        }  # fmt: skip
        lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert lines[0] == {"step": 1, "train_loss": 0.7}
        assert lines[-1]["eval_loss"] == 0.5
        assert (
            lines[-1]["adapter_bytes"]
            == (trial / "adapter/adapter_model.safetensors").stat().st_size
        )
        evidence = pd.read_parquet(trial / "evidence.parquet")
        assert tuple(evidence.columns) == EVIDENCE_COLUMNS
        assert evidence["loss"].tolist() == [0.25, 0.75]
        assert store.evidence().equals(evidence)


def test_a_diverged_trial_is_stored_as_diverged(tmp_path: Path) -> None:
    with SweepStore(tmp_path / "out", REQUEST) as store:
        store.add(finished(diverged=True), {})
        assert store.evidence()["diverged"].tolist() == [True]
        assert [trial.diverged for trial in store.trials()] == [True]
        line = (
            (store.trials_directory / "r4-lr0.001-seed0" / "metrics.jsonl")
            .read_text()
            .splitlines()[0]
        )
        assert json.loads(line)["train_loss"] is None


@pytest.mark.parametrize("file", ["evidence.parquet", "metrics.jsonl", "config.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut short"])
def test_a_broken_trial_is_named_with_the_remedy(tmp_path: Path, file: str, damage: str) -> None:
    with SweepStore(tmp_path / "out", REQUEST) as store:
        store.add(finished(4), {})
        store.add(finished(8), {})
        path = store.trials_directory / "r8-lr0.001-seed0" / file
        content = path.read_bytes()
        path.unlink()
        if damage != "gone":
            path.write_bytes(b"" if damage == "empty" else content[: len(content) - 20])
        reads = {"evidence.parquet": [store.evidence]}.get(
            file, [store.trials, lambda: read_train_losses(store.directory)]
        )
        for read in reads:
            with pytest.raises(
                RankwiseError, match=rf"trial r8-.* cannot be used: .*{file}.*rm -r .*/r8-"
            ) as refused:
                read()
            assert "\n" not in str(refused.value)


def test_leftovers_of_a_killed_run_do_not_count(tmp_path: Path) -> None:
    with SweepStore(tmp_path / "out", REQUEST) as store:
        store.add(finished(), {})
    (tmp_path / "out/trials/.partial-r8-lr0.001-seed0/adapter").mkdir(parents=True)
    with SweepStore(tmp_path / "out", REQUEST) as store:
        assert store.trial_names() == ["r4-lr0.001-seed0"]
        assert sorted(path.name for path in store.trials_directory.iterdir()) == [
            "r4-lr0.001-seed0"
        ]


def test_a_sweep_without_a_trial_does_not_block_its_directory(tmp_path: Path) -> None:
    with SweepStore(tmp_path, REQUEST) as store:
        store.write_json("untrained.json", {"example_id": [1], "loss": [0.5]})
    with SweepStore(tmp_path, REQUEST) as store:  # the same goes on
        assert store.read_json("untrained.json") is not None
    with SweepStore(tmp_path, request(ranks=[4, 16])) as store:
        assert read_sweep(tmp_path) == request(ranks=[4, 16])
        assert store.read_json("untrained.json") is None


def test_a_directory_that_passes_to_another_request_loses_all_that_was_derived(
    tmp_path: Path,
) -> None:
    save_sweep(tmp_path, [finished()], REQUEST)
    derived = [
        "decision.json", "report.html", "reported.json", "train_data.jsonl", "untrained.json",
        "best/adapter_config.json", "export/trl.yaml", "best-rank-pattern/adapter_config.json",
        "diagnosis/r4-lr0.001-seed0-steps2/config.json", "tensorboard/r4-lr0.001-seed0/events",
        "trials/.failed-r8-lr0.001-seed0/log.txt", ".unfinished/r8-lr0.001-seed0.safetensors",
    ]  # fmt: skip
    for name in derived:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of the old request")
    shutil.rmtree(tmp_path / "trials" / "r4-lr0.001-seed0")
    (tmp_path / "notes.txt").write_text("the user's own")
    with SweepStore(
        tmp_path, replace(REQUEST, fingerprints=replace(REQUEST.fingerprints, data="c"))
    ):
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {".lock", "sweep.json", "trials", "notes.txt"}
        assert not list((tmp_path / "trials").iterdir())


def test_a_damaged_file_that_can_be_made_anew_counts_as_missing(tmp_path: Path) -> None:
    with SweepStore(tmp_path, REQUEST) as store:
        store.add(finished(), {})
        for name in ("untrained.json", "decision.json"):
            store.write_json(name, {"loss": [0.5]})
            assert store.read_json(name) == {"loss": [0.5]}
            path = tmp_path / name
            path.write_text(path.read_text().replace("0.5", "0.7"))
            assert store.read_json(name) is None
    with SweepStore(tmp_path, REQUEST):
        assert not (tmp_path / "untrained.json").exists()  # so it is measured again


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        SweepStore(tmp_path, REQUEST),
        pytest.raises(RequestError, match="in use by another running sweep"),
    ):
        SweepStore(tmp_path, REQUEST)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow, as a full disk would."""
    store = SweepStore(tmp_path / "out", REQUEST)
    store.add(finished(4), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(RankwiseError) as trial:
            store.add(finished(8), {})
        with pytest.raises(RankwiseError) as decision:
            store.write_json("decision.json", {"reason": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "r8-lr0.001-seed0" in str(trial.value)
    assert "1 complete trials are kept" in str(trial.value)
    assert "decision.json" in str(decision.value)
    assert trial.value.exit_code == 1
    assert store.trial_names() == ["r4-lr0.001-seed0"]
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".partial")]
    store.add(finished(8), {})
    assert store.trial_names() == ["r4-lr0.001-seed0", "r8-lr0.001-seed0"]


def test_a_leftover_that_cannot_be_removed_is_one_line_and_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SweepStore(tmp_path / "out", REQUEST).__exit__()
    (tmp_path / "out" / ".partial-x").touch()

    def remove(path: Path) -> None:
        raise errors.pop(0)

    errors = [PermissionError(1, "Operation not permitted"), KeyboardInterrupt()]
    monkeypatch.setattr("rankwise.store.directory.remove", remove)
    with pytest.raises(RequestError, match=r"out .* cannot be written: Operation not permitted"):
        SweepStore(tmp_path / "out", REQUEST)
    with pytest.raises(KeyboardInterrupt) as interrupted:  # keeps the store alive, not its lock
        SweepStore(tmp_path / "out", REQUEST)
    monkeypatch.undo()
    with SweepStore(tmp_path / "out", REQUEST):
        assert interrupted.value is not None


def test_what_was_made_from_an_adapter_goes_once_that_is_trained_to_other_values(
    tmp_path: Path,
) -> None:
    """The cut of a source, and what was healed from the cut, are kept while the source is equal."""
    source = finished(8)
    cut = replace(source.trial, rank=4, lora_alpha=4, truncated_from=source.trial.name)
    healed = replace(
        cut, truncated_from=None, starts_from=cut.name, learning_rate=1e-4, share_of_steps=0.1
    )
    everything = sorted([source.trial.name, cut.name, healed.name])
    save_sweep(tmp_path, [source, finished(4, trial=cut), finished(4, trial=healed)])
    shutil.rmtree(tmp_path / "trials" / source.trial.name)
    with SweepStore(tmp_path, REQUEST) as store:
        assert len(store.trial_names()) == 2
        store.add(source, {"epochs": 1})
        assert store.trial_names() == everything
        shutil.rmtree(tmp_path / "trials" / source.trial.name)
        store.add(finished(8, adapter={"lora_A.weight": torch.ones(2, 3)}), {"epochs": 1})
        assert store.trial_names() == [source.trial.name]
        assert len(list(store.trials_directory.glob(".failed-*"))) == 2
