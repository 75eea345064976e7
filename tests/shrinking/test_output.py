"""Files of a shrunk adapter."""

import json
from dataclasses import replace
from pathlib import Path

from rankwise.lora.files import read_adapter
from rankwise.shrinking.cuts import decompose, make_cuts
from rankwise.shrinking.output import write_result
from tests.shrinking.test_outcome import decision, result


def test_adapter_card_decision_and_report_are_written(lm: Path, tmp_path: Path) -> None:
    cuts = make_cuts(decompose(lm / "adapter"), [4])
    one = replace(decision(), adapter=lm / "adapter")
    written = write_result(result(one), [cuts], tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "adapter", "decision.json", "report.html",
    ]  # fmt: skip
    assert written.written == (tmp_path / "out" / "adapter",)
    assert read_adapter(tmp_path / "out" / "adapter").config["r"] == 4
    assert json.loads((tmp_path / "out" / "decision.json").read_text())["rank"] == 4
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "truncated from rank 16" in card
    assert "base_model: owner/base" in card
    assert "--max-lora-rank 8" in card


def test_several_adapters_get_folders_of_their_names(lm: Path, tmp_path: Path) -> None:
    cuts = make_cuts(decompose(lm / "adapter"), [4])
    for name in ("x/adapter", "y/adapter", "z/x"):
        (tmp_path / name).mkdir(parents=True)
    paths = [tmp_path / "x/adapter", tmp_path / "y/adapter", tmp_path / "z/x"]
    decisions = [replace(decision(), adapter=path) for path in paths]
    written = write_result(result(*decisions), [cuts] * 3, tmp_path / "out")
    assert [path.name for path in written.written] == ["x", "y", "x-2"]
