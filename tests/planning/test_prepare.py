import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig
from rankwise.planning.params import ParamCount, count_at_rank
from rankwise.planning.plan import plan
from rankwise.planning.prepare import PreparedRequest, prepare
from tests.tiny_models import HYBRIDS, VISION_LANGUAGE, write_config


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


def counted(model: str, **settings: Any) -> tuple[PreparedRequest, ParamCount]:
    """Return a request made ready, and its parameters at rank 4; no step is traced."""
    prepared = prepare(PlanConfig(model=model, ranks=(4,), seq_len=64, **settings))
    return prepared, count_at_rank(prepared.skeleton, prepared.config, 4)


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_only_the_language_model_gets_an_adapter_unless_targets_are_named(
    name: str, tmp_path: Path
) -> None:
    model = write_config(tmp_path, name)
    text, params = counted(model)
    assert text.skeleton.meta.task_type == "IMAGE_TEXT_TO_TEXT"
    assert not [name for name in params.layers if "vis" in name or name.endswith("lm_head")]
    (note,) = [note for note in text.notes if "--target-modules all-linear plans for all" in note]
    whole, all_params = counted(model, target_modules="all-linear")
    assert all_params.trainable > params.trainable
    assert note not in whole.notes
    assert any("the batch is text" in note for note in whole.notes)


@pytest.mark.parametrize(
    ("name", "requested", "planned"),
    [
        ("llava", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT"),
        ("whisper", "SEQ_2_SEQ_LM", "SPEECH_SEQ2SEQ"),
    ],
)
def test_tasks_as_users_of_peft_write_them_are_planned_by_the_models_own_class(
    name: str, requested: Any, planned: str, tmp_path: Path
) -> None:
    model = write_config(tmp_path, name)
    one, params = counted(model, task_type=requested)
    assert one.skeleton.meta.task_type == planned
    assert f"{name} is planned as {planned}" in one.notes
    assert params == counted(model)[1]


@pytest.mark.parametrize("targets", [None, "all-linear", "mlp"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_layers_that_peft_refuses_get_no_adapter_and_are_named(
    name: str, targets: Any, tmp_path: Path
) -> None:
    hybrid, params = counted(write_config(tmp_path, name), target_modules=targets)
    assert params.trainable
    assert not any(layer.endswith("out_proj") for layer in params.layers)
    assert any(f"no adapter on out_proj of {name}: PEFT refuses it" in n for n in hybrid.notes)
    assert any("mamba-ssm" in note for note in hybrid.notes)


def test_a_router_that_returns_two_tensors_gets_no_adapter(tmp_path: Path) -> None:
    model = write_config(tmp_path, "llama4")
    routed, params = counted(model, target_modules="all-linear")
    assert not any(layer.endswith("router") for layer in params.layers)
    assert any("no adapter on router of llama4" in note for note in routed.notes)
    with pytest.raises(RequestError, match="cannot run this step"):
        plan(model, ranks=(4,), seq_len=64, target_modules="router")


def test_a_quantisation_that_cannot_run_is_left_out_with_a_note(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "state_size": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", **sizes}))
    mamba = plan(str(tmp_path), ranks=(4,), seq_len=64)
    for name in ("int8", "nf4"):  # PyTorch 2.10 runs them
        start = f"no figures for quantization {name}:"
        reasons = [note for note in mamba.notes if note.startswith(start)]
        assert len(reasons) == (name not in mamba.by_quantization)
