"""The figures that `inspect_adapter` returns (tests/cli/test_inspect.py has the command)."""

from pathlib import Path

import numpy as np
import pytest

from rankwise.errors import RequestError
from rankwise.lora import read_adapter, write_adapter
from rankwise.lora.adapter import factor_pairs
from rankwise.lora.inspection import CAUTION, inspect_adapter
from tests.lora.adapters import make_adapter, product, write_two


def test_every_singular_value_is_listed(tmp_path: Path) -> None:
    two = write_two(tmp_path)
    content = inspect_adapter(*two).as_dict()
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


@pytest.mark.parametrize(
    ("rank", "ranks"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (5, [1, 2, 4, 5])]
)
def test_energy_is_given_for_powers_of_two_and_the_largest_rank(
    tmp_path: Path, rank: int, ranks: list[int]
) -> None:
    write_adapter(make_adapter(rank), tmp_path / "one")
    energy = inspect_adapter(tmp_path / "one").energy_by_rank()
    assert list(energy) == ranks
    assert energy[rank] == pytest.approx(1)


def test_notes_name_effects_beyond_delta_w(tmp_path: Path) -> None:
    write_adapter(make_adapter(use_dora=True), tmp_path / "dora")
    assert "DoRA" in inspect_adapter(tmp_path / "dora").notes[0]
    write_adapter(make_adapter(init_lora_weights="pissa"), tmp_path / "pissa")
    assert "pissa" in inspect_adapter(tmp_path / "pissa").notes[0]
    inspection = inspect_adapter(tmp_path / "dora", _with_one_layer(tmp_path))
    assert "3 layers are in only one of the adapters" in inspection.notes[1]


def _with_one_layer(tmp_path: Path) -> Path:
    write_adapter(make_adapter(2, {"h.0.q": (24, 24)}), tmp_path / "small")
    return tmp_path / "small"


def test_adapters_of_different_base_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError,
        match=r"adapters '.*one' and '.*small': the two adapters have no layer in common",
    ):
        inspect_adapter(write_two(tmp_path)[0], _with_one_layer(tmp_path))


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text()
    write_adapter(make_adapter(8, {"q": (24, 24), "v": (24, 20)}), tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python")[1].split("```")[0], {})
    assert [pair.rank for pair in factor_pairs(read_adapter(tmp_path / "adapter-r4"))] == [4, 4]
    assert " ".join(CAUTION.split()) in " ".join(page.split())
