"""``rankwise inspect`` with one adapter or two (tests/lora/test_inspection.py has the figures)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import main
from rankwise.lora import write_adapter
from rankwise.lora.inspection import inspect_adapter
from tests.cli.test_main import rankwise as run
from tests.cli.test_main import refuse
from tests.lora.adapters import make_adapter, write_two


def test_json_is_all_that_stdout_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = write_two(tmp_path)
    assert main(["inspect", *map(str, two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_adapter(*two).as_dict()


def test_two_adapters_are_compared_without_a_warning(tmp_path: Path) -> None:
    two = write_two(tmp_path)
    done = run("inspect", *two)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert f"Directions shared with {two[1]} (expected by chance)" in words
    assert "they do not decide the rank" in words
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("name", ["spectra.html", "spectra.png"])
def test_plots_are_drawn(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("png"):
        pytest.importorskip("kaleido")
    assert main(["inspect", str(write_two(tmp_path)[0]), "--plot", str(path)]) == 0
    if name.endswith("html"):
        assert "stable rank" in path.read_text()
        assert "<script src=" not in path.read_text()
    else:
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_wrong_requests_are_refused_in_one_line(tmp_path: Path, capfd: Any) -> None:
    one, _ = write_two(tmp_path)
    (tmp_path / "empty").mkdir()
    write_adapter(make_adapter(peft_type="LOHA"), tmp_path / "loha")
    for arguments, words in [
        ([tmp_path / "absent"], "no such directory"),
        ([tmp_path / "empty"], "has no adapter_config.json"),
        ([tmp_path / "loha"], "is of PEFT type 'LOHA'"),
        ([one, tmp_path / "absent"], "no such directory"),
        ([one, "--plot", "x.pdf"], "ends in .html or .png"),
        ([one, "--polt", "x.png"], "did you mean '--plot'"),
        ([], "required: ADAPTER"),
        (["one", "two", "third"], "unrecognized argument 'third'"),
    ]:
        assert words in refuse(capfd, "inspect", *arguments)


def test_torch_is_the_only_large_library_loaded(tmp_path: Path) -> None:
    adapter, _ = write_two(tmp_path)
    code = (
        f"import sys; from rankwise.cli import main; main(['inspect', {str(adapter)!r}])\n"
        "heavy = {'transformers', 'peft', 'pandas', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
