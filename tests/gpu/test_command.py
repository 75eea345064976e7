"""`python benchmarks/gpu.py`: all parts in a small way, and the page made from its results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.on_gpu import tables
from benchmarks.on_gpu.lengths import MEAN, MEDIAN, draw_lengths

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_all_parts_run_in_a_small_way_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    results = json.loads(out.read_text())
    assert set(results) == {"machine", "parts", "seconds"}
    assert {"card", "driver", "versions", "date", "commit"} <= set(results["machine"])
    parts = results["parts"]
    assert set(parts) == {"parity", "speed", "memory", "growth", "sweep"}
    assert [name for name, part in parts.items() if "failed" in part] == []
    assert parts["parity"]["held"]
    assert [row for row in parts["speed"]["rows"] if "failed" in row] == []
    ways = {(row["size"], row["way"]) for row in parts["speed"]["rows"]}
    assert len(ways) == 4 * 5  # sizes and ways
    assert all(row["tokens_per_second"] > 0 for row in parts["speed"]["rows"])
    planned = [row for row in parts["memory"]["rows"] if row["engine"] == "reference"]
    assert planned and all(row["planned"] > 0 for row in planned)
    assert {row["what"] for row in parts["growth"]["rows"]} == {"trials", "tokens", "rank"}
    assert parts["sweep"]["trials"] == 4
    for title in ("Goals", "Parity", "Speed", "Memory", "Growth", "Sweep"):
        assert f"## {title}" in done.stdout


def test_the_page_in_the_docs_is_that_of_the_newest_results(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    tables.write_page(ROOT / "benchmarks" / "results", page)
    assert page.read_text() == (ROOT / "docs" / "results" / "gpu.md").read_text()


def test_lengths_have_the_published_median_and_mean() -> None:
    lengths = sorted(draw_lengths(100_000, most=20_000))
    assert lengths[50_000] == pytest.approx(MEDIAN, rel=0.02)
    assert sum(lengths) / len(lengths) == pytest.approx(MEAN, rel=0.02)
    assert max(draw_lengths(1000, most=256)) == 256
