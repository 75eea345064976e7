"""Real trainers, swept: the scripts of examples/trainers and TRL's command, on a tiny model."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import rankwise
from rankwise.sweeps.finish import SweepResult
from tests.tiny_models import make_dialogues, save_lm_inputs

EXAMPLES = Path(__file__).parents[2] / "examples/trainers"
VALUES = "--rank {rank} --lora-alpha {lora_alpha} --learning-rate {learning_rate} --seed {seed}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = save_lm_inputs(tmp_path_factory.mktemp("inputs"), 400)
    return {**settings, "learning_rate": 5e-3, "margin": 0.5}


def script(name: str, arguments: str) -> str:
    return f"{shlex.join([sys.executable, str(EXAMPLES / name)])} {arguments} {VALUES}"


def losses(result: SweepResult) -> np.ndarray:
    """Return the mean held-out loss of each trial, (ranks, seeds)."""
    assert not result.evidence["diverged"].any()
    means = result.evidence.groupby(["rank", "seed"])["loss"].mean()
    return means.unstack().to_numpy()


def test_the_same_trials_by_our_engine_and_by_a_script_decide_alike(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    ours = rankwise.sweep(**inputs, out=tmp_path / "ours")
    arguments = f"--model {inputs['model']} --data {{train_data}} --out {{out}}"
    trainer = script("peft_trainer.py", arguments)
    theirs = rankwise.sweep(**inputs, out=tmp_path / "theirs", trainer=trainer)
    assert theirs.decision.rank == ours.decision.rank
    assert theirs.decision.verdict == ours.decision.verdict
    first, second = losses(ours), losses(theirs)
    # Two samples of seeds for each rank: their means differ by no more than seeds vary.
    spread = np.sqrt((first.var(1, ddof=1) + second.var(1, ddof=1)).mean() / 2)
    error = spread * np.sqrt(2 / first.size)
    bound = stats.t.ppf(0.9975, 2 * (first.size - len(first))) * error
    assert abs(first.mean() - second.mean()) <= bound
    untrained = pd.DataFrame(_json(tmp_path / "ours/untrained.json"))["loss"].mean()
    assert first.mean() < untrained - 0.1  # they learnt, and so the comparison says something


def _json(path: Path) -> Any:
    import json

    return json.loads(path.read_text())


def test_trl_s_sft(inputs: dict[str, Any], tmp_path: Path) -> None:
    trainer = script("trl_sft.py", f"{inputs['model']} {{train_data}} {{out}}")
    result = rankwise.sweep(**inputs, out=tmp_path / "out", trainer=trainer, seeds=1)
    assert result.decision.recommended in (2, 4)
    assert losses(result).shape == (2, 1)


def test_trl_s_dpo(inputs: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    chats = [row["messages"] for row in make_dialogues(200)]
    rows = [
        {"prompt": chat[0]["content"], "chosen": chat[1]["content"], "rejected": "[UNK]"}
        for chat in chats
    ]
    pd.DataFrame(rows).to_json(data, orient="records", lines=True)
    trainer = script("trl_dpo.py", f"{inputs['model']} {{train_data}} {{out}}")
    columns = {"prompt_column": "prompt", "completion_column": "chosen"}
    request = {**inputs, **columns, "data": data, "seeds": 1}
    result = rankwise.sweep(**request, out=tmp_path / "out", trainer=trainer)
    assert losses(result).shape == (2, 1)


def test_trl_s_command_line(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_directory = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"{bin_directory}{os.pathsep}{os.environ['PATH']}")
    config = tmp_path / "trl.yaml"
    text = (EXAMPLES / "trl.yaml").read_text().replace("path/to/model", inputs["model"])
    config.write_text(text.replace("chats.jsonl", str(inputs["data"])))
    result = rankwise.sweep(
        **inputs, out=tmp_path / "out", seeds=1, trainer="trl", trainer_config=config
    )
    assert losses(result).shape == (2, 1)
    assert "train_data.jsonl" not in (tmp_path / "out/export/trl.yaml").read_text()
