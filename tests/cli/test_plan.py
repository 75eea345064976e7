"""``rankwise plan``: options reach the plan, and the plot is checked before anything is computed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import main
from rankwise.planning.config import FUSED_ONLY, PlanConfig
from rankwise.settings import options
from tests.cli.test_main import refuse
from tests.tiny_models import write_config


def test_options_are_the_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path, "llama")
    command = ["plan", model, "--ranks", "8,4", "--rank-pattern", "q_proj=2", "--precision", "FP32",
               "--use-dora", "--json"]  # fmt: skip
    assert main(command) == 0
    request = json.loads(capsys.readouterr().out)["request"]
    changed = {"model": model, "ranks": [4, 8], "rank_pattern": {"q_proj": 2}, "precision": "fp32",
               "use_dora": True}  # fmt: skip
    unset = {**PlanConfig(model=model).as_dict(), "target_modules": "all-linear"}
    assert request == {**unset, **changed}
    assert set(request) == set(options(PlanConfig)) - {"engine", *FUSED_ONLY}


def test_wrong_requests_are_refused_before_the_model_is_read(tmp_path: Path, capfd: Any) -> None:
    for options_given, words in [
        (["--plot", "plan.pdf"], "plan.pdf"),
        (["--ranks", "x"], "rank 'x': allowed is a whole number, at least 1"),
        (["--sequence-length", "8"], "unrecognized argument '--sequence-length'"),
        (["--seq-length", "8"], "did you mean '--seq-len'"),
    ]:
        assert words in refuse(capfd, "plan", tmp_path / "absent", *options_given)


def test_a_mistyped_directory_is_refused_before_a_large_library_is_loaded(tmp_path: Path) -> None:
    code = (
        f"import sys; from rankwise.cli import main; code = main(['plan', '{tmp_path}/absent'])\n"
        "heavy = {'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)\n"
        "assert code == 2 and not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no such directory" in done.stderr
