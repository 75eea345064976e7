"""``rankwise sweep``: settings from the command line and from YAML, what it prints, what it refuses."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise import SweepConfig
from rankwise.cli import main
from rankwise.settings import options
from tests.cli.test_main import rankwise, refuse, run_here
from tests.conftest import make_reviews, provisional_request


@pytest.fixture
def fast(tiny_model: Path, reviews: Path, tmp_path: Path) -> list[object]:
    out = tmp_path / "out"
    return ["sweep", "--model", tiny_model, "--data", reviews, "--ranks", "2,4", "--learning-rate", "5e-3",
            "--seeds", "1", "--margin", "0.5", "--out", out]  # fmt: skip


def test_a_sweep_ends_by_naming_rank_adapter_and_report(fast: list[object], tmp_path: Path) -> None:
    done = rankwise(*fast)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-3:] == [
        f"Recommended rank: 2. Adapter: {tmp_path / 'out/best'}",
        f"Configs for PEFT, TRL, Axolotl and LLaMA-Factory: {tmp_path / 'out/export'}",
        f"Report: {tmp_path / 'out/report.html'}",
    ]
    assert "learning rate" in done.stdout
    assert "84 training, 24 held-out and 12 test examples" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_a_sweep_over_a_quantized_base(fast: list[object], tmp_path: Path, capfd: Any) -> None:
    done = run_here(
        capfd,
        *fast,
        "--quantization",
        "nf4",
        "--target-modules",
        "attention",
        "--loraplus-ratio",
        "2",
    )
    assert done.returncode == 0, done.stderr
    assert "Recommended rank: 2." in done.stdout
    assert "Warning" not in done.stderr
    settings = json.loads((tmp_path / "out/sweep.json").read_text())["settings"]
    assert [settings[name] for name in ("quantization", "target_modules", "loraplus_ratio")] == [
        "nf4",
        "attention",
        2,
    ]
    adapter = json.loads((tmp_path / "out/best/adapter_config.json").read_text())
    assert adapter["r"] == 2
    assert all("attention" in name for name in adapter["target_modules"])
    assert run_here(capfd, *fast).returncode == 2  # another base is another sweep


def test_json_is_all_that_stdout_holds(fast: list[object], tmp_path: Path, capfd: Any) -> None:
    done = run_here(capfd, *fast, "--json")
    content = json.loads(done.stdout)
    on_disk = json.loads((tmp_path / "out/decision.json").read_text())
    del on_disk["sha256"]
    assert {key: content[key] for key in on_disk} == on_disk
    assert content["report"] == str(tmp_path / "out/report.html")
    report = run_here(capfd, "report", tmp_path / "out", "--json")
    assert json.loads(report.stdout) == {"report": str(tmp_path / "out/report.html")}


def test_yaml_and_options_together(fast: list[object], tmp_path: Path, capfd: Any) -> None:
    keys = [str(option).removeprefix("--") for option in fast[1::2]]
    lines = [f"{key}: {value}" for key, value in zip(keys, fast[2::2], strict=True)]
    (tmp_path / "sweep.yaml").write_text("\n".join(lines))
    done = run_here(
        capfd, "sweep", tmp_path / "sweep.yaml", "--ranks", "1,2"
    )  # an option goes before the file
    assert done.returncode == 0, done.stderr
    assert "Recommended rank: 1." in done.stdout


def test_undetermined_says_what_to_run_and_that_can_be_run(
    fast: list[object], tmp_path: Path, capfd: Any
) -> None:
    fast[fast.index("--learning-rate") + 1] = "1e-7"  # learns nothing
    done = run_here(capfd, *fast)
    assert done.returncode == 0
    last = f"Recommended rank: none yet. The adapter of every trial: {tmp_path / 'out/trials'}"
    assert last in done.stdout.splitlines()
    assert not (tmp_path / "out/best").exists()
    assert "Try other learning rates" in " ".join(done.stdout.split())
    content = json.loads((tmp_path / "out/decision.json").read_text())
    assert content["verdict"] == "undetermined"
    fast[fast.index("--seeds") + 1] = "2"
    refused = run_here(capfd, *fast)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "seeds is 2, was 1" in refused.stderr
    more = run_here(capfd, *fast, "--extend")
    assert more.returncode == 0
    assert "2 trials are complete; continuing with the rest" in more.stderr


def test_a_provisional_rank_is_named_with_its_doubt(
    provisional: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(provisional.parent, tmp_path / "home")
    request = provisional_request(tiny_model, tmp_path / "home" / "out")
    out = request["out"]
    words: list[str] = ["sweep"]
    for name, value in request.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    decision = json.loads((out / "decision.json").read_text())
    reached = math.floor(100 * decision["confidence_reached"])
    named = f"{decision['recommended']} (provisional: {reached} % sure, 95 % asked)"

    assert main(words) == 0
    assert capfd.readouterr().out.splitlines()[-3:] == [
        f"Recommended rank: {named}. Adapter: {out / 'best'}",
        f"Configs for PEFT, TRL, Axolotl and LLaMA-Factory: {out / 'export'}",
        f"Report: {out / 'report.html'}",
    ]
    assert main([*words, "--require-confidence"]) == 0
    assert capfd.readouterr().out.splitlines()[-2:] == [
        f"Recommended rank: {named}. The adapter of every trial: {out / 'trials'}",
        f"Report: {out / 'report.html'}",
    ]
    assert main(["analyze", str(out), "--margin", "0.002"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"Recommended rank: {named}"


def change(fast: list[object], option: str, value: object) -> list[object]:
    if option not in fast:
        return [*fast, option, value]
    position = fast.index(option) + 1
    return [*fast[:position], value, *fast[position + 1 :]]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--data", "absent.csv", "'absent.csv': no such file"),
        ("--text-column", "txt", "text_column 'txt' is not in"),
        ("--ranks", "0,4", "rank 0"),
        ("--ranks", "4,-8", "rank -8"),
        ("--ranks", "4,4.5", "rank '4.5'"),
        ("--ranks", "4,4", "4 given more than once"),
        ("--ranks", "4,32", "rank 32 is larger than a target layer allows: at most 16"),
        ("--ranks", "4", "rank 4 alone"),
        ("--target-modules", "qeury", "did you mean 'query'"),
        ("--model", "absent/model/x", "no such directory"),
        ("--model", "some-team/not-here", "cannot be loaded"),
        ("--learning-rate", "nan", "learning_rate 'nan'"),
        ("--seeds", "0", "seeds 0"),
        ("--lora-alpha", "32", "did you mean 'fixed:32'"),
        ("--epochs", "0.5", "epochs '0.5'"),
        ("--learningrate", "1e-3", "did you mean '--learning-rate'"),
        ("--out", "reviews.csv", "is a file"),
    ],
)
def test_bad_requests_are_one_line_and_exit_2(
    fast: list[object],
    tmp_path: Path,
    option: str,
    value: str,
    words: str,
    monkeypatch: Any,
    capfd: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refuse(capfd, *change(fast, option, value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            pd.DataFrame({"text": ["a", None, "b", "c"] * 9, "label": [0, 1, 0, 1] * 9}),
            "not a text in 9 of 36 rows (row 2",
        ),
        (pd.DataFrame({"text": ["a", "b"] * 9, "label": [1] * 18}), "one class only"),
        (
            pd.DataFrame({"text": list("abcdefghijklmnopqr"), "label": [0] * 16 + [1] * 2}),
            "class '1' has 2",
        ),
        (pd.DataFrame({"text": [], "label": []}), "no rows"),
        (pd.DataFrame({"words": ["a", "b"] * 9, "label": [0, 1] * 9}), "columns: words, label"),
    ],
)
def test_bad_data_is_one_line_and_exit_2(
    fast: list[object], tmp_path: Path, table: pd.DataFrame, words: str, capfd: Any
) -> None:
    table.to_csv(tmp_path / "bad.csv", index=False)
    assert words in refuse(capfd, *change(fast, "--data", tmp_path / "bad.csv"))


def test_other_bad_requests(fast: list[object], tmp_path: Path, capfd: Any) -> None:
    held_out = tmp_path / "held.csv"
    make_reviews(9).assign(label="never seen").to_csv(held_out, index=False)
    (tmp_path / "sweep.yaml").write_text("rank: 4,8\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").write_text("")
    for arguments, words in [
        (change(fast, "--data", tmp_path / "empty.csv"), "is empty"),
        ([*fast, "--eval-data", held_out], "labels that the training data lacks: never seen"),
        (
            ["sweep", tmp_path / "sweep.yaml"],
            "'rank' is not a setting of a sweep (did you mean 'ranks'?)",
        ),
        (["sweep", tmp_path / "absent.yaml"], "absent.yaml"),
        (["report", tmp_path / "empty"], "no finished sweep"),
        (["swep"], "swep"),
        ([], "COMMAND"),
    ]:
        assert words in refuse(capfd, *arguments)


def test_a_bad_request_as_a_process(fast: list[object]) -> None:
    done = rankwise(*change(fast, "--ranks", "4,-8"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rankwise: rank -8: allowed is a whole number, at least 1\n"


def test_models_that_cannot_serve(
    fast: list[object], tiny_model: Path, tmp_path: Path, capfd: Any
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    assert "has no config.json" in refuse(capfd, *change(fast, "--model", model))
    (model / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    assert "has no weights" in refuse(capfd, *change(fast, "--model", model))
    (model / "pytorch_model.bin").write_bytes(b"")
    assert "pickle only (pytorch_model.bin)" in refuse(capfd, *change(fast, "--model", model))
    assert "model './absent': no such directory" in refuse(
        capfd, *change(fast, "--model", "./absent")
    )


def test_a_fault_in_a_yaml_file_is_reported_with_its_line(
    fast: list[object], tmp_path: Path, capfd: Any
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("# a comment\nseeds: 1\n\nranks: [4, x]\n")
    assert "settings.yaml, line 4: rank 'x': allowed is a whole number" in refuse(
        capfd, "sweep", settings
    )
    # A value from the command line has no line in the file.
    assert "rankwise: seeds 0: allowed" in refuse(
        capfd, "sweep", settings, "--ranks", "2,4", "--seeds", "0"
    )


def test_every_setting_is_an_option() -> None:
    page = rankwise("sweep", "--help").stdout
    for name in options(SweepConfig):
        assert f"--{name.replace('_', '-')}" in page
