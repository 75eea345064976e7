import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import main
from rankwise.planning.plan import plan
from tests.tiny_models import write_config


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
        ({"num_hidden_layers": 10**6}, ["num_hidden_layers 1000000", "at most 1000"]),
        ({"num_labels": 2**53}, ["num_labels 9007199254740992", "at most 1000000"]),
        ({"hidden_size": 2**60, "num_attention_heads": 3}, ["cannot be divided", "2)"]),
        ({"hidden_size": 2**60, "num_attention_heads": 2}, ["cannot be built"]),
        ({"pad_token_id": 1000}, ["pad_token_id must be below vocab_size"]),
    ],
    ids=str,
)
def test_contradicting_configs_are_refused(
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
def test_heads_with_an_explicit_width_need_not_divide(
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


def test_missing_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
