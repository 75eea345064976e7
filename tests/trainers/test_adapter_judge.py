import json
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

from rankwise.engine.reference import score_adapter
from rankwise.engine.trial import Trial
from rankwise.lora.files import read_adapter
from rankwise.models.base_model import BaseModel
from rankwise.tasks.base import Encoded
from rankwise.trainers.adapter_judge import AdapterJudge
from rankwise.trainers.left_adapter import UnusableTrialError
from tests.tiny_models import load_tiny_lm
from tests.trainers.fake_trainer import LAYER, write_adapter

TRIAL = Trial(rank=4, seed=0, learning_rate=1e-3, lora_alpha=8)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseModel, Encoded]:
    base, _, held_out = load_tiny_lm("llama", tmp_path_factory.mktemp("lm"))
    return base, held_out


def test_an_adapter_is_scored_as_peft_scores_it(
    loaded: tuple[BaseModel, Encoded], tmp_path: Path
) -> None:
    base, held_out = loaded
    write_adapter(tmp_path / "checkpoint-3", 4, 8, 0)
    judged = AdapterJudge(base, held_out, "fused").judge(TRIAL, tmp_path)
    expected = score_adapter(base, tmp_path / "checkpoint-3", held_out)
    np.testing.assert_allclose(judged.evidence["loss"], expected["loss"], rtol=1e-5)
    assert judged.evidence["example_id"].tolist() == list(held_out.ids)
    assert set(judged.adapter) == {f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"}


def test_adapters_of_trials_do_not_mix(loaded: tuple[BaseModel, Encoded], tmp_path: Path) -> None:
    """One of other layers and with DoRA in between, for which the reference engine stands in."""
    base, held_out = loaded
    write_adapter(tmp_path / "plain", 4, 8, 0)
    judge = AdapterJudge(base, held_out, "fused")
    before = judge.judge(TRIAL, tmp_path / "plain").evidence
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"], use_dora=True)
    model = get_peft_model(base.model, config)
    model.save_pretrained(tmp_path / "dora")
    model.unload()
    path = tmp_path / "dora/adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "base_model_name_or_path": base.name}))
    judged = judge.judge(TRIAL, tmp_path / "dora")
    with pytest.raises(UnusableTrialError, match="its adapter is DoRA"):
        AdapterJudge(base, held_out, "fused", truncates=True).judge(TRIAL, tmp_path / "dora")
    assert np.isfinite(judged.evidence["loss"]).all()
    after = judge.judge(TRIAL, tmp_path / "plain").evidence
    np.testing.assert_array_equal(after["loss"], before["loss"])


def test_an_adapter_of_another_model_is_unusable(
    loaded: tuple[BaseModel, Encoded], tmp_path: Path
) -> None:
    write_adapter(tmp_path, 4, 8, 0)
    weights = read_adapter(tmp_path)
    from safetensors.torch import save_file

    renamed = {key.replace("layers.0", "layers.7"): x for key, x in weights.tensors.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UnusableTrialError, match=r"its adapter does not fit base .* has no layer"):
        AdapterJudge(*loaded, "fused").judge(TRIAL, tmp_path)


def test_an_adapter_that_changes_the_base_is_unusable(
    loaded: tuple[BaseModel, Encoded], tmp_path: Path
) -> None:
    write_adapter(tmp_path, 4, 8, 0, init_lora_weights="pissa_niter_4")
    with pytest.raises(UnusableTrialError, match="its adapter changes the base weight by pissa"):
        AdapterJudge(*loaded, "fused").judge(TRIAL, tmp_path)


def test_weights_that_are_not_finite_have_diverged(
    loaded: tuple[BaseModel, Encoded], tmp_path: Path
) -> None:
    write_adapter(tmp_path, 4, 8, 0, nan=True)
    judged = AdapterJudge(*loaded, "fused").judge(TRIAL, tmp_path)
    assert judged.diverged
    assert judged.evidence.empty
