"""``rankwise inspect``: one adapter or two (tests/lora/test_inspection.py has what is found)."""

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import main
from rankwise.lora import write_adapter
from tests.cli.test_main import refuse
from tests.lora.adapters import make_adapter


def test_json_is_all_that_stdout_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(make_adapter(6), tmp_path / "one")
    assert main(["inspect", str(tmp_path / "one"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 4


def test_wrong_requests_are_refused(tmp_path: Path, capfd: Any) -> None:
    assert "required: ADAPTER" in refuse(capfd, "inspect")
    assert "no such directory" in refuse(capfd, "inspect", tmp_path / "absent")
    assert "x.pdf" in refuse(capfd, "inspect", tmp_path, "--plot", "x.pdf")
    assert "unrecognized argument 'third'" in refuse(capfd, "inspect", "one", "two", "third")
