import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.cli import main
from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig
from rankwise.planning.plan import plan
from tests.tiny_models import write_config

MEMORY = {
    "weights",
    "adapter",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "context",
    "peak_allocated",
    "peak_eval",
}


def test_command_prints_one_json_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_config(tmp_path, "llama")
    assert main(["plan", model, "--ranks", "4,8", "--device", "T4", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["model"] == model
    assert [row["rank"] for row in content["ranks"]] == [4, 8]
    for row in content["ranks"]:
        assert set(row["memory"]) >= MEMORY
        assert all(isinstance(value, int) for value in row["memory"].values())
        assert row["fits"] is True
        assert row["trainable_params"] == sum(row["layers"].values())
    assert {row["quantization"] for row in content["by_quantization"]} == {"none", "int8", "nf4"}


def test_both_loops_are_named_next_to_the_answer(tmp_path: Path) -> None:
    model = write_config(tmp_path, "llama")
    settings: dict[str, Any] = {"ranks": [4, 8, 16], "batch_size": 4}
    without = plan(model, precision="fp16", **settings).as_dict()
    with_autocast = plan(model, precision="fp16", autocast=True, **settings).as_dict()
    assert without["by_loop"] == with_autocast["by_loop"]
    for content, autocast in ((without, False), (with_autocast, True)):
        peaks = [row["memory"]["peak_allocated"] for row in content["ranks"]]
        loops = [row for row in content["by_loop"] if row["autocast"] is autocast]
        assert [row["peak_allocated"] for row in loops] == peaks
        assert [row["rank"] for row in loops] == [4, 8, 16]


def test_table_shows_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path, "llama")
    assert main(["plan", model, "--ranks", "4,8", "--memory", "700MB", "--batch-size", "2"]) == 0
    text = capsys.readouterr().out
    for words in (
        "trainable parameters",
        "NF4",
        "int8",
        "The largest rank that fits",
        "The largest batch",
    ):
        assert words in text
    assert (
        main(
            [
                "plan",
                model,
                "--ranks",
                "4",
                "--memory",
                "500MB",
                "--device",
                "H100",
                "--gradient-checkpointing",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert (
        "No rank fits" in text
        and "Memory: " in text
        and "What to change first" in text
        and "--seq-len 256 saves" in text
    )


def test_command_and_python_call_make_the_same_request() -> None:
    text: dict[str, Any] = {
        "model": "m",
        "ranks": "8,4",
        "batch_size": "2",
        "target_modules": "q_proj,v_proj",
        "rank_pattern": "q_proj=2",
        "precision": "FP16",
        "memory": "2MB",
    }
    values = PlanConfig(
        model="m",
        ranks=(4, 8),
        batch_size=2,
        target_modules=["q_proj", "v_proj"],  # type: ignore[arg-type]
        rank_pattern={"q_proj": 2},  # type: ignore[arg-type]
        precision="fp16",
        memory=2_000_000,
    )
    assert PlanConfig(**text) == values
    assert rankwise.PlanConfig is PlanConfig and rankwise.plan is plan


@pytest.mark.parametrize("config", ["llama", {"ranks": [4]}, {}])
def test_config_of_another_type_is_refused(config: Any) -> None:
    with pytest.raises(RequestError, match=r"config .*allowed is a PlanConfig"):
        plan(config=config)


@pytest.mark.parametrize("name", ["a.html", pytest.param("b.png", marks=pytest.mark.slow)])
def test_plot_shows_every_part_of_the_memory(name: str, tmp_path: Path) -> None:
    import shutil

    if name.endswith("png") and not any(map(shutil.which, ("chromium", "google-chrome", "chrome"))):
        pytest.skip("pictures need a browser")
    path = tmp_path / name
    assert (
        main(["plan", write_config(tmp_path, "llama"), "--ranks", "4,8", "--plot", str(path)]) == 0
    )
    if name.endswith("html"):
        page = path.read_text()
        for part in MEMORY - {"peak_allocated", "peak_eval"}:
            assert f'"name":"{part}"' in page
        assert "<script src=" not in page
    else:
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_bars_add_up_to_the_peak_and_the_context(tmp_path: Path) -> None:
    from rankwise.report.plan_report import plan_figure

    result = plan(write_config(tmp_path, "llama"), ranks=[4, 8])
    bars = [trace for trace in plan_figure(result).data if trace.type == "bar"]
    for index, row in enumerate(result.rows):
        total = sum(bar.y[index] for bar in bars) * 2**30
        assert total == pytest.approx(row.memory.peak_allocated + row.memory.context)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "RTX-4091"], ["RTX-4091", "did you mean 'RTX-4090'"]),
        (["--memory", "24"], ["memory '24'", "did you mean 24GB?"]),
        (["--memory", "lots"], ["memory", "'lots'", "24GB"]),
        (["--ranks", "0"], ["rank 0", "at least 1"]),
        (["--precision", "fp8"], ["precision 'fp8'", "fp32, bf16 and fp16"]),
        (["--quantization", "nf5"], ["nf5", "did you mean 'nf4'"]),
        (["--optimizer", "adam"], ["optimizer 'adam'", "adamw"]),
        (["--attention", "slow"], ["attention 'slow'", "eager"]),
        (["--task-type", "CAUSAL"], ["task_type 'CAUSAL'", "CAUSAL_LM"]),
        (["--target-modules", "q_porj"], ["q_porj", "did you mean 'q_proj'"]),
        (["--target-modules", "(q_proj"], ["(q_proj", "regular expression"]),
        (["--rank-pattern", "q_proj"], ["rank_pattern", "q_proj=4"]),
        (["--seq-len", "1.5"], ["seq_len", "whole number"]),
        (["--plot", "x.pdf"], ["x.pdf", ".html or .png"]),
        (["--plot", "nowhere/x.html"], ["nowhere"]),
        (["--rank", "4"], ["--rank", "did you mean '--ranks'"]),
        (["--task-type", "IMAGE_CLS"], ["cannot be built as IMAGE_CLS"]),
        (["--ranks", ",".join(map(str, range(1, 2001)))], ["2000 given", "64 at most"]),
        (["--engine", "fused", "--seeds", str(2**53)], ["seeds", "at most 1000"]),
        (["--num-labels", str(2**53)], ["num_labels", "at most 1000000"]),
        (["--rank-pattern", "(q_proj=4"], ["rank_pattern '(q_proj' is not a regular expression"]),
    ],
    ids=str,
)
def test_wrong_requests_are_refused_in_one_line(
    options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write_config(tmp_path, "llama"), *options]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for word in words:
        assert word in output.err


def test_rank_above_the_smaller_side_of_a_layer_is_noted(tmp_path: Path) -> None:
    result = plan(write_config(tmp_path, "llama"), ranks=[4, 100])
    assert any("rank 100 is above 64" in note and "k_proj" in note for note in result.notes)


def test_attention_without_a_fused_kernel_is_noted(tmp_path: Path) -> None:
    model = write_config(tmp_path, "llama")
    sdpa = plan(model, ranks=[4], precision="fp32")
    flash = plan(model, ranks=[4], precision="fp32", attention="flash")
    assert any("--attention flash" in note for note in sdpa.notes)
    assert not flash.notes
    assert flash.rows[0].memory.peak_allocated < sdpa.rows[0].memory.peak_allocated


def test_help_loads_no_torch() -> None:
    code = (
        "import sys, rankwise.cli\n"
        "try: rankwise.cli.main(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--gradient-checkpointing" in done.stdout


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"gradient_checkpointing": True}),
        pytest.param("mixtral", {"quantization": "nf4"}, marks=pytest.mark.slow),
        pytest.param(
            "gemma2", {"gradient_checkpointing": True, "memory": "1MB"}, marks=pytest.mark.slow
        ),
        pytest.param("llama", {"quantization": "nf4"}, marks=pytest.mark.slow),
        pytest.param("gemma2", {"quantization": "nf4"}, marks=pytest.mark.slow),
    ],
)
def test_command_in_a_new_process_prints_the_plan_of_the_python_call(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model, length = write_config(tmp_path, name), 64
    command = [
        sys.executable,
        "-m",
        "rankwise",
        "plan",
        model,
        "--ranks",
        "4",
        "--json",
        "--seq-len",
        str(length),
    ]
    for field, value in changes.items():
        command += [f"--{field.replace('_', '-')}", *([] if value is True else [value])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == plan(model, ranks=[4], seq_len=length, **changes).as_dict()
    assert done.stderr == ""
