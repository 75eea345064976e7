from pathlib import Path
from typing import Any

import pytest

from rankwise.planning.plan import plan
from tests.tiny_models import write_config


@pytest.mark.parametrize(
    ("group", "names"),
    [("attention", "q_proj,k_proj,v_proj,o_proj"), ("mlp", "gate_proj,up_proj,down_proj")],
)
def test_group_of_layers_is_planned_like_its_names(group: str, names: str, tmp_path: Path) -> None:
    model = write_config(tmp_path, "llama")
    one, other = (
        plan(model, ranks=(4, 8), target_modules=targets).as_dict() for targets in (group, names)
    )
    assert one["request"]["target_modules"] == group
    for key in ("ranks", "by_quantization"):
        assert one[key] == other[key]


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
def test_checkpoint_quantised_on_disk_is_planned_in_its_quantisation(
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


def test_checkpoint_of_another_quantisation_method_is_noted(tmp_path: Path) -> None:
    model = write_config(
        tmp_path,
        "llama",
        quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128},
    )
    plain = plan(write_config(tmp_path / "plain", "llama"), ranks=[4])
    result = plan(model, ranks=[4])
    assert result.rows == plain.rows
    assert {*result.notes} - {*plain.notes} == {
        "the checkpoint is quantised on disk by gptq; "
        "the figures are for a base that is not quantised"
    }
