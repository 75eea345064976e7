import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.cli import main
from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig, make_plan_config
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


@pytest.mark.parametrize(
    ("group", "names"),
    [("attention", "q_proj,k_proj,v_proj,o_proj"), ("mlp", "gate_proj,up_proj,down_proj")],
)
def test_a_group_of_layers_is_planned_as_its_names(group: str, names: str, tmp_path: Path) -> None:
    model = write_config(tmp_path, "llama")
    one, other = (
        plan(model, ranks=(4, 8), target_modules=targets).as_dict() for targets in (group, names)
    )
    assert one["request"]["target_modules"] == group
    for key in ("ranks", "by_quantization"):
        assert one[key] == other[key]


def test_table_says_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_command_and_call_are_the_same_request() -> None:
    text = make_plan_config(
        {
            "model": "m",
            "ranks": "8,4",
            "batch_size": "2",
            "target_modules": "q_proj,v_proj",
            "rank_pattern": "q_proj=2",
            "precision": "FP16",
            "memory": "2MB",
        }
    )
    values = PlanConfig(
        model="m",
        ranks=(4, 8),
        batch_size=2,
        target_modules=["q_proj", "v_proj"],  # type: ignore[arg-type]
        rank_pattern={"q_proj": 2},  # type: ignore[arg-type]
        precision="fp16",
        memory=2_000_000,
    )
    assert text == values
    assert rankwise.PlanConfig is PlanConfig and rankwise.plan is plan


@pytest.mark.parametrize("config", ["llama", {"ranks": [4]}, {}])
def test_something_else_than_a_request_is_refused(config: Any) -> None:
    with pytest.raises(RequestError, match=r"config .*allowed is a PlanConfig"):
        plan(config=config)


@pytest.mark.parametrize("name", ["a.html", "b.png"])
def test_plot_shows_every_part(name: str, tmp_path: Path) -> None:
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
    ],
    ids=str,
)
def test_bad_requests(
    options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write_config(tmp_path, "llama"), *options]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for word in words:
        assert word in output.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "lama"}, ["'lama'", "did you mean 'llama'"]),
        ({"model_type": None}, ["model_type None"]),
        (
            {"num_attention_heads": 3},
            ["hidden_size 128", "num_attention_heads 3", "nearest that does is 2"],
        ),
        ({"num_key_value_heads": 3}, ["num_attention_heads 4", "num_key_value_heads 3"]),
        ({"num_attention_heads": 0}, ["num_attention_heads 0"]),
        ({"vocab_size": "many"}, ["vocab_size"]),
        ({"pad_token_id": 1000}, ["pad_token_id must be below vocab_size"]),
    ],
    ids=str,
)
def test_configs_that_cannot_be(
    changes: dict[str, Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write_config(tmp_path, "llama", **changes)]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    for word in words:
        assert word in output.err


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (
            "deepseek_v3",
            {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16},
        ),
        ("glm4_moe_lite", {}),  # its widths are all its class's
        ("qwen3", {}),
    ],
)
def test_heads_of_a_width_of_their_own_need_not_divide(
    name: str, written: dict[str, int], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "vocab_size": 100,
    }
    config = {
        "model_type": name,
        **sizes,
        "num_hidden_layers": 1,
        "intermediate_size": 96,
        **written,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (row,) = plan(str(tmp_path), ranks=[4], seq_len=8, target_modules="o_proj").rows
    real = AutoConfig.from_pretrained(tmp_path)
    width = getattr(real, "v_head_dim", None) or real.head_dim
    assert row.params.trainable == 4 * (5 * width + 64)


def test_models_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name, words in (
        ("empty", "no config.json"),
        ("absent", "no such directory"),
        ("broken", "not JSON"),
    ):
        assert main(["plan", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    for path in (
        "./absent",
        "../absent",
        "~/absent",
        ".absent",
    ):  # the names of paths, not of a hub
        assert main(["plan", path]) == 2
        error = capsys.readouterr().err
        assert f"model '{path}': no such directory" in error and error.count("\n") == 1


def test_rank_that_adds_nothing_is_noted(tmp_path: Path) -> None:
    result = plan(write_config(tmp_path, "llama"), ranks=[4, 100])
    assert any("rank 100 is above 64" in note and "k_proj" in note for note in result.notes)


@pytest.mark.parametrize(
    ("how", "stored"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            "nf4-dq",
        ),
        ({"load_in_8bit": True}, "int8"),
    ],
)
def test_checkpoint_quantised_on_disk_is_planned_so(
    how: dict[str, Any], stored: str, tmp_path: Path
) -> None:
    from transformers import BitsAndBytesConfig

    plain = write_config(tmp_path / "plain", "llama")
    written = BitsAndBytesConfig(**how).to_dict()
    model = write_config(tmp_path / "quantised", "llama", quantization_config=written)
    one, other = plan(model, ranks=[4]), plan(plain, ranks=[4], quantization=stored)
    assert one.rows == other.rows
    assert one.by_quantization == other.by_quantization
    assert {*one.notes} - {*other.notes} == {
        f"the checkpoint is {stored} on disk, and is planned so"
    }
    # What the checkpoint has in full is there in fp32, as all that is not quantised.
    written["llm_int8_skip_modules"] = ["lm_head", "up_proj"]
    part = plan(write_config(tmp_path / "part", "llama", quantization_config=written), ranks=[4])
    bits = {"nf4": 4 + 32 / 64, "nf4-dq": 4 + 8 / 64, "int8": 8}[stored]
    more = part.rows[0].memory.weights - one.rows[0].memory.weights
    # Scales of scales and of rows, and tables of values, take a little besides.
    assert more == pytest.approx(6 * 128 * 256 * (32 - bits) / 8, rel=0.03)


def test_checkpoint_quantised_otherwise_is_noted(tmp_path: Path) -> None:
    model = write_config(
        tmp_path,
        "llama",
        quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128},
    )
    plain = plan(write_config(tmp_path / "plain", "llama"), ranks=[4])
    result = plan(model, ranks=[4])
    assert result.rows == plain.rows
    assert {*result.notes} - {*plain.notes} == {
        "the checkpoint is quantised on disk by gptq; the figures are for a base that is not quantised"
    }


def test_math_attention_is_noted(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize(
    "changes", [{"quantization": "nf4"}, {"gradient_checkpointing": True, "memory": "1MB"}]
)
def test_command_as_a_process(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
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
