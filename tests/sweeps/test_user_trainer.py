"""Sweeps by a user's trainer, over a tiny language model; the trainer is a script without torch."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import rankwise
from rankwise import RankwiseError, RequestError, SweepConfig
from rankwise.report.style import print_lines
from rankwise.store.records import read_evidence
from rankwise.sweeps.config import make_config
from rankwise.sweeps.dry_run import dry_run
from rankwise.sweeps.run import open_run
from tests.factories import Notes
from tests.tiny_models import save_lm_inputs
from tests.trainers.stubs import COMMAND, SCRIPT, is_gone

RATE = 1e-2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a sweep by a script that leaves the adapters that our engine trained."""
    place = tmp_path_factory.mktemp("inputs")
    settings = {**save_lm_inputs(place, 400), "learning_rate": RATE}
    rankwise.sweep(**settings, seeds=1, out=place / "ours")
    for rank in (2, 4):
        adapter = place / "ours" / "trials" / f"r{rank}-lr{RATE:g}-seed0" / "adapter"
        shutil.copytree(adapter, place / f"r{rank}")
    return {**settings, "margin": 0.5, "trainer": f"{COMMAND} --copy {shlex.quote(str(place))}"}


def test_a_sweep_by_a_user_s_trainer(inputs: dict[str, Any], tmp_path: Path) -> None:
    out, notes = tmp_path / "out", Notes()
    result = rankwise.sweep(**inputs, out=out, progress=notes)
    assert result.decision.recommended == 2
    names = sorted(path.name for path in (out / "trials").glob("[!.]*"))
    assert names == [f"r{rank}-lr0.01-seed{seed}" for rank in (2, 4) for seed in (0, 1)]
    assert not list((out / "trials").glob(".running-*"))
    trial = out / "trials" / names[0]
    assert "training rank 2 at 0.01" in (trial / "log.txt").read_text()
    assert (trial / "out/adapter_config.json").exists()
    assert "epochs" not in json.loads((trial / "config.json").read_text())
    assert any("the trainer must not train on them: pass it {train_data}" in x for x in notes.notes)
    ours = read_evidence(inputs["data"].parent / "ours").query("rank == 2")
    kept = result.evidence.query("rank == 2 and seed == 0").set_index("example_id")
    np.testing.assert_allclose(
        kept["loss"], ours.set_index("example_id")["loss"].loc[kept.index], rtol=1e-5
    )
    command = (out / "export/command.txt").read_text()
    assert command.splitlines()[-1].startswith(shlex.join([sys.executable, str(SCRIPT)]))
    assert "--rank 2 --alpha 2 --lr 0.01" in command
    assert "Trained by the command" in (out / "best/README.md").read_text()
    assert inputs["trainer"].split()[0] in (out / "report.html").read_text()


def test_once_truncates_what_the_trainer_left(inputs: dict[str, Any], tmp_path: Path) -> None:
    result = rankwise.sweep(**inputs, out=tmp_path / "out", seeds=1, strategy="once")
    trials = {path.name for path in (tmp_path / "out/trials").glob("[!.]*")}
    assert trials == {"r2-lr0.01-seed0", "r4-lr0.01-seed0"}
    logs = [path.parent.name for path in (tmp_path / "out/trials").glob("*/log.txt")]
    assert logs == ["r4-lr0.01-seed0"]
    assert result.decision.question == "keep"


def test_a_stopped_sweep_runs_only_what_is_missing(inputs: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = tmp_path / "broken"
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(
        f"import runpy, sys\nfrom pathlib import Path\n"
        f"assert not Path({str(broken)!r}).exists() or '--rank 2' in ' '.join(sys.argv)\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    request = {**inputs, "trainer": inputs["trainer"].replace(str(SCRIPT), str(wrapper))}
    broken.touch()
    with pytest.raises(RankwiseError, match=r"r4.*seed0 and r4.*seed0 failed alike"):
        rankwise.sweep(**{**request, "learning_rate": (RATE, 2 * RATE)}, out=out)
    done = {path.name: path.stat().st_ino for path in (out / "trials").glob("[!.]*")}
    assert done and not any(name.startswith("r4") for name in done)
    broken.unlink()
    result = rankwise.sweep(**{**request, "learning_rate": (RATE, 2 * RATE)}, out=out)
    after = {path.name: path.stat().st_ino for path in (out / "trials").glob("[!.]*")}
    assert done.items() <= after.items()
    assert set(result.evidence["rank"]) == {2, 4}
    assert not result.evidence["diverged"].any()


def test_a_failed_trial_is_recorded_and_named_in_the_decision(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    request = {**inputs, "trainer": f"{inputs['trainer']} --do fail --only 4", "seeds": 1}
    result = rankwise.sweep(**request, out=tmp_path / "out")
    trial = tmp_path / "out/trials/r4-lr0.01-seed0"
    assert "ValueError: no such file" in json.loads((trial / "config.json").read_text())["failed"]
    assert "Traceback" in (trial / "log.txt").read_text()
    assert any("1 trial failed and counts as diverged" in text for text in result.decision.caveats)


def test_the_training_part_is_written_for_the_trainer(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    copy = f"{sys.executable} -c 'import shutil, sys; shutil.copy(*sys.argv[1:3])'"
    command = f"{copy} {{train_data}} {{out}} {{rank}} {{seed}} {{learning_rate}}"
    request = {**inputs, "trainer": command, "train_examples": 30, "out": tmp_path / "out"}
    with open_run(SweepConfig(**request), Notes()) as run:
        from rankwise.engine.trial import Trial

        trial = Trial(rank=2, seed=0, learning_rate=1e-3, lora_alpha=2)
        (finished,) = run.engine.train([trial])
        held_out = {str(run.task.held_out.inputs[0])}
    assert finished.failed is not None  # it left no adapter
    rows = pd.read_json(finished.files["out"] / "train_data.jsonl", lines=True)
    whole = pd.read_json(inputs["data"], lines=True)
    assert len(rows) == 30
    assert rows["messages"].map(str).isin(set(whole["messages"].map(str))).all()
    assert not held_out & set(rows["messages"].map(str))


def test_a_dry_run_prints_the_commands(inputs: dict[str, Any], tmp_path: Path) -> None:
    planned = dry_run(SweepConfig(**inputs, out=tmp_path / "out"))
    assert [shlex.split(line)[3] for line in planned.commands] == ["2", "4"]
    assert f"{tmp_path}/out/trials/.running-r2-lr0.01-seed0/out" in planned.commands[0]
    assert (planned.seconds, planned.ranks[0].train_seconds) == (None, None)
    json.loads(planned.as_json())
    assert not (tmp_path / "out").exists()


def test_a_command_with_a_line_break_is_printed_as_a_line_that_runs(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    trainer = f"{inputs['trainer']} 'two\nlines'"
    planned = dry_run(SweepConfig(**{**inputs, "trainer": trainer}, out=tmp_path / "out"))
    out = io.StringIO()
    print_lines(Console(file=out), *planned.commands)
    line = out.getvalue().splitlines()[0]
    done = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, text=True)
    assert done.stdout.endswith("two\nlines")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 3, "lora_dropout": 0.1}, ["epochs", "lora_dropout", "trainer decides"]),
        ({"target_modules": "attention"}, ["target_modules", "trainer decides"]),
        ({"model": None}, ["model", "--model"]),
        ({"metric": "eval_loss"}, ["metric", "with --data", "one of the two"]),
        ({"data": None, "metric": "eval_margin"}, ["'eval_margin'", "--direction max"]),
        ({"data": None, "direction": "max"}, ["direction goes with metric"]),
        (
            {"data": None, "metric": "eval_loss", "quantization": "nf4", "engine": "reference"},
            ["quantization", "engine", "scores nothing"],
        ),
        ({"data": None, "strategy": "once"}, ["once", "--data"]),
        ({"trainer": None, "metric": "eval_loss"}, ["metric goes with trainer"]),
        ({"train_examples": 30}, ["train_examples", "{train_data}"]),
        ({"trials_at_once": 0}, ["trials_at_once", "at least 1"]),
        ({"trial_timeout": -1}, ["trial_timeout", "above 0"]),
        ({"trainer": "python x {rank} {out} {learning_rate}"}, ["{seed}", "--seeds 1"]),
        ({"trainer": "python x {rank} {out} {seed}"}, ["{learning_rate}", "--learning-rate"]),
        ({"trainer": None, "trials_at_once": 2}, ["trials_at_once goes with trainer"]),
    ],
)
def test_requests_that_a_trainer_cannot_honour(
    settings: dict[str, object], words: list[str]
) -> None:
    values = {"model": "m", "data": "d.jsonl", "trainer": COMMAND, **settings}
    with pytest.raises(RequestError) as caught:
        make_config(values)
    for word in words:
        assert word in str(caught.value)


FAKE_AXOLOTL = """#!{python}
import sys
import shutil
import yaml
content = yaml.safe_load(open(sys.argv[2]))
assert sys.argv[1] == "train"
print(content["datasets"][0]["path"])
source = {place!r} + "/r" + str(content["lora_r"])
shutil.copytree(source, content["output_dir"], dirs_exist_ok=True)
"""


def test_a_sweep_by_axolotl_s_command(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of its name that reads its file and copies an adapter."""
    program = tmp_path / "axolotl"
    program.write_text(FAKE_AXOLOTL.format(python=sys.executable, place=str(inputs["data"].parent)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    config = tmp_path / "my.yml"
    config.write_text(
        f"base_model: {inputs['model']}\nadapter: lora\nlora_r: 16  # as everyone\n"
        f"datasets:\n  - path: {inputs['data']}\n    type: chat_template\n"
    )
    out = tmp_path / "out"
    request = {**inputs, "trainer": "axolotl", "trainer_config": config, "seeds": 1}
    result = rankwise.sweep(**request, out=out)
    assert result.decision.recommended == 2
    log = (out / "trials/r4-lr0.01-seed0/log.txt").read_text()
    assert log == f"{out}/train_data.jsonl\n"
    exported = (out / "export/my.yml").read_text()
    assert "lora_r: 2  # as everyone" in exported
    assert f"- path: {inputs['data']}" in exported  # all of it
    assert (out / "export/command.txt").read_text().splitlines()[-1] == "axolotl train my.yml"
    again = tmp_path / "moved.yml"
    again.write_text(config.read_text() + "num_epochs: 3\n")
    with pytest.raises(RequestError, match="another request: trainer_config"):
        rankwise.sweep(**{**request, "trainer_config": again}, out=out)


WRITES_LOSSES = """
import json, sys
from pathlib import Path
rank, seed, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
noise = [0.001 * ((7 * n + 3 * rank + 5 * seed) % 11) for n in range(60)]
losses = [1 + n % 3 + (0.5 if rank < 4 else 0) + noise[n] for n in range(60)]
rows = [{"example_id": f"row {n}", "loss": loss} for n, loss in enumerate(losses)]
(out / "rankwise_evidence.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
print(json.dumps({"eval_wer": 0.3 - 0.01 * (rank >= 4) + 0.001 * seed * (rank % 3)}))
"""


@pytest.mark.parametrize("by_examples", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_figures_that_a_trainer_measured_itself(tmp_path: Path, by_examples: bool) -> None:
    script = tmp_path / "train.py"
    script.write_text(WRITES_LOSSES)
    request: dict[str, Any] = {
        "trainer": f"{sys.executable} {script} {{rank}} {{seed}} {{out}}", "ranks": (2, 4, 8),
        "learning_rate": 1e-3, "seeds": 3, "out": tmp_path / "out",
    }  # fmt: skip
    if not by_examples:
        request |= {"metric": "eval_wer", "margin": 0.005}
    planned = dry_run(SweepConfig(**request))
    assert len(planned.commands) == 3
    result = rankwise.sweep(**request)
    assert result.decision.rank == 4
    losses = {row.rank: row.loss_mean for row in result.decision.table}
    gap = 0.5 if by_examples else 0.01
    assert losses[2] is not None and losses[4] is not None
    assert losses[2] - losses[4] == pytest.approx(gap, abs=0.003)
    assert result.best is None
    assert result.report.exists()
    assert result.export is not None
    text = "loss per example" if by_examples else "eval_wer"
    assert text in (tmp_path / "out/report.html").read_text()
    assert rankwise.sweep(**request).decision == result.decision  # nothing runs again


@pytest.mark.slow
def test_a_killed_sweep_redoes_only_what_was_under_way(tmp_path: Path) -> None:
    slow, pid = tmp_path / "slow", tmp_path / "pid"
    (tmp_path / "train.py").write_text(
        "import json, os, sys, time\nfrom pathlib import Path\n"
        f"if '4' in sys.argv and Path({str(slow)!r}).exists():\n"
        f"    Path({str(pid)!r}).write_text(str(os.getpid()))\n    time.sleep(60)\n"
        "print(json.dumps({'eval_loss': 1.0}))\n"
    )
    slow.touch()
    out = tmp_path / "out"
    words = ["--ranks", "2,4", "--seeds", "1", "--learning-rate", "1e-3", "--metric", "eval_loss"]
    command = f"{sys.executable} {tmp_path}/train.py {{rank}} {{out}} {{seed}} {{learning_rate}}"
    words = [*words, "--trainer", command, "--out", str(out)]
    rankwise_sweep = [sys.executable, "-m", "rankwise", "sweep", *words]
    process = subprocess.Popen(rankwise_sweep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not pid.exists() or not pid.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait(10)
    assert is_gone(int(pid.read_text()))
    done = {path.name: path.stat().st_ino for path in (out / "trials").glob("[!.]*")}
    assert list(done) == ["r2-lr0.001-seed0"]
    slow.unlink()
    subprocess.run(rankwise_sweep, check=True, capture_output=True)
    after = {path.name: path.stat().st_ino for path in (out / "trials").glob("[!.]*")}
    assert after.items() > done.items()
    assert set(after) == {"r2-lr0.001-seed0", "r4-lr0.001-seed0"}
