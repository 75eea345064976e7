from pathlib import Path

import pytest
import yaml

from rankwise.cli import main


def test_a_sweep_file_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yml").write_text("base_model: some/model\nadapter: lora\n")
    assert main(["init", "axolotl", "my.yml"]) == 0
    assert "rankwise sweep sweep.yaml --dry-run" in capsys.readouterr().out
    written = Path("sweep.yaml").read_text()
    assert yaml.safe_load(written)["trainer-config"] == "my.yml"
    assert main(["init", "axolotl", "my.yml"]) == 2
    assert "'sweep.yaml' exists already" in capsys.readouterr().err
    assert main(["init", "axolotl", "my.yml", "--out", "b.yaml", "--json"]) == 0
    assert capsys.readouterr().out == '{\n  "out": "b.yaml"\n}\n'


def test_bad_requests_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.yml").write_text("base_model: some/model\nadapter: lora\n")
    for arguments in (
        ["init"],
        ["init", "axolotl", str(tmp_path / "absent.yml")],
        ["init", "axolotl", str(tmp_path / "my.yml"), "--out", str(tmp_path / "absent/a.yml")],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
