"""Tests of ``rankwise inspect``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwise.cli import main
from rankwise.errors import RequestError
from rankwise.lora import read_adapter, write_adapter
from rankwise.lora.adapter import factor_pairs
from rankwise.lora.inspection import CAUTION, inspect_adapter
from rankwise.report.inspect_report import similarity_figure, spectra_figure
from tests.cli.test_main import rankwise as run
from tests.cli.test_main import refuse
from tests.lora.adapters import SIZES, make_adapter, product

SHORT = ["0.q", "0.v", "1.q", "10.q"]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters of one base, of ranks 6 and 4; the first has one layer of a single direction."""
    sizes = {f"model.{name}": size for name, size in SIZES.items()}
    first = make_adapter(6, sizes)
    first.tensors["base_model.model.model.h.1.q.lora_B.weight"][:, 1:] = 0
    write_adapter(first, tmp_path / "one")
    write_adapter(make_adapter(4, sizes, seed=1), tmp_path / "two")
    return tmp_path / "one", tmp_path / "two"


def test_the_command_prints_each_layer_and_that_spectra_do_not_decide(
    two: tuple[Path, Path],
) -> None:
    done = run("inspect", two[0])
    assert done.returncode == 0, done.stderr
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:-1]
        for line in done.stdout.splitlines()
        if "│" in line
    }
    assert list(rows) == SHORT
    cells = [cell.strip() for cell in rows["1.q"]]
    assert cells[:6] == ["6", "1.0", "1.0", "1", "1", "no"]
    assert cells[7] == "█▁▁▁▁▁"
    assert rows["0.q"][5].strip() == "yes"
    words = " ".join(done.stdout.split())
    assert "Layers of model.h." in words
    assert "1 of 4 layers does not use its rank" in words
    assert "model.h.1.q (1 of 6)" in words
    assert "they do not decide the rank" in words
    assert "Warning" not in done.stderr


def test_json_lists_every_singular_value(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *map(str, two), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    total = kept = 0.0
    for layer, pair in zip(content["layers"], factor_pairs(read_adapter(two[0])), strict=True):
        truth = np.linalg.svd(product(pair), compute_uv=False)[:6]
        assert layer["name"] == pair.name
        np.testing.assert_allclose(layer["singular_values"], truth, rtol=1e-6, atol=1e-6)
        total, kept = total + (truth**2).sum(), kept + (truth[:2] ** 2).sum()
    assert content["energy_by_rank"]["2"] == pytest.approx(kept / total)
    assert list(content["energy_by_rank"]) == ["1", "2", "4", "6"]
    assert "do not decide" in content["caution"]
    assert len(content["overlaps"]) == 4
    assert np.array(content["overlaps"][0]["similarity"]).shape == (6, 4)


def test_two_adapters_are_compared(two: tuple[Path, Path]) -> None:
    done = run("inspect", *two)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert f"Directions shared with {two[1]} (expected by chance)" in words
    assert "Of 4 directions per layer, the two adapters share on average" in words
    assert "by chance 1.00" in words  # 6 * 4 / 24


@pytest.mark.parametrize("name", ["spectra.html", "spectra.png"])
def test_plots_are_drawn(two: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("png"):
        pytest.importorskip("kaleido")
    assert main(["inspect", str(two[0]), "--plot", str(path)]) == 0
    if name.endswith("html"):
        assert "stable rank" in path.read_text()
        assert "<script src=" not in path.read_text()
    else:
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_plots_show_the_values_of_the_inspection(two: tuple[Path, Path]) -> None:
    found = inspect_adapter(*two)
    heat, *marks = spectra_figure(found).data
    assert list(heat.y) == SHORT
    np.testing.assert_allclose(heat.z[0], 100 * found.spectrum.layers[0].energy)
    assert [mark.name for mark in marks] == ["rank for 99 %", "effective rank", "stable rank"]
    assert marks[2].x[2] == pytest.approx(1)
    figure = similarity_figure(found)
    assert [one.text for one in figure.layout.annotations] == ["q<br>mean of 3", "v"]
    mean = sum(layer.similarity for layer in found.overlaps if layer.name.endswith("q")) / 3
    np.testing.assert_allclose(figure.data[0].z, mean)


def test_notes_name_effects_beyond_delta_w(tmp_path: Path) -> None:
    write_adapter(make_adapter(use_dora=True), tmp_path / "dora")
    assert "DoRA" in inspect_adapter(tmp_path / "dora").notes[0]
    write_adapter(make_adapter(init_lora_weights="pissa"), tmp_path / "pissa")
    assert "pissa" in inspect_adapter(tmp_path / "pissa").notes[0]
    found = inspect_adapter(tmp_path / "dora", _with_one_layer(tmp_path))
    assert "3 layers are in only one of the adapters" in found.notes[1]


def _with_one_layer(tmp_path: Path) -> Path:
    write_adapter(make_adapter(2, {"h.0.q": (24, 24)}), tmp_path / "small")
    return tmp_path / "small"


def test_adapters_of_different_base_models_are_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        RequestError,
        match=r"adapters '.*one' and '.*small': the two adapters have no layer in common",
    ):
        inspect_adapter(two[0], _with_one_layer(tmp_path))


def test_a_wrong_request_gives_one_line_and_exit_code_2(
    two: tuple[Path, Path], tmp_path: Path, capfd: Any
) -> None:
    (tmp_path / "empty").mkdir()
    write_adapter(make_adapter(peft_type="LOHA"), tmp_path / "loha")
    for arguments, words in [
        ([tmp_path / "absent"], "no such directory"),
        ([tmp_path / "empty"], "has no adapter_config.json"),
        ([tmp_path / "loha"], "is of PEFT type 'LOHA'"),
        ([two[0], tmp_path / "absent"], "no such directory"),
        ([two[0], "--plot", "x.pdf"], "ends in .html or .png"),
        ([two[0], "--polt", "x.png"], "did you mean '--plot'"),
        ([], "ADAPTER"),
    ]:
        assert words in refuse(capfd, "inspect", *arguments)


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text()
    write_adapter(make_adapter(8, {"q": (24, 24), "v": (24, 20)}), tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python")[1].split("```")[0], {})
    assert [pair.rank for pair in factor_pairs(read_adapter(tmp_path / "adapter-r4"))] == [4, 4]
    assert " ".join(CAUTION.split()) in " ".join(page.split())


def test_torch_is_the_only_large_library_loaded(two: tuple[Path, Path]) -> None:
    code = (
        f"import sys; from rankwise.cli import main; main(['inspect', {str(two[0])!r}])\n"
        "heavy = {'transformers', 'peft', 'pandas', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
