import errno
import json
import os
from pathlib import Path

import pytest

from rankwise.engine.trial import Trial
from rankwise.errors import ExhaustedError
from rankwise.trainers.left_adapter import (
    UnusableTrialError,
    find_adapter,
    read_trained_adapter,
    same_model,
)
from tests.trainers.fake_trainer import write_adapter

TRIAL = Trial(rank=4, seed=0, learning_rate=1e-3, lora_alpha=8)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["checkpoint-90", "checkpoint-100"], "checkpoint-100"),
        (["checkpoint-90", "."], "."),
        (["checkpoint-90", "final"], "final"),
        ([".", "ref"], "."),  # TRL's DPO may save a reference adapter below the trained one
        (["a/checkpoint-2", "a/checkpoint-10"], "a/checkpoint-10"),
    ],
)
def test_the_last_adapter_is_found(tmp_path: Path, places: list[str], expected: str) -> None:
    for place in places:
        write_adapter(tmp_path / place, 4, 8, 0)
    assert find_adapter(tmp_path) == tmp_path / expected


def test_of_two_finished_adapters_the_newest_counts(tmp_path: Path) -> None:
    for age, place in ((100, "b"), (0, "a")):
        write_adapter(tmp_path / place, 4, 8, 0)
        config = tmp_path / place / "adapter_config.json"
        os.utime(config, (config.stat().st_mtime - age,) * 2)
    assert find_adapter(tmp_path) == tmp_path / "a"


def test_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnusableTrialError, match=r"no adapter.*which holds model\.safetensors"):
        find_adapter(tmp_path)


def test_an_adapter_as_it_was_asked_for(tmp_path: Path) -> None:
    write_adapter(tmp_path, 4, 8, 0, base_model_name_or_path="HuggingFaceTB/SmolLM2-135M")
    adapter = read_trained_adapter(tmp_path, TRIAL, "models/SmolLM2-135M")
    assert adapter is not None
    assert adapter.config["r"] == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 8}, ["rank"]),
        ({"rank_pattern": {"q_proj": 8}}, ["rank"]),
        ({"lora_alpha": 16}, ["lora_alpha 16", "lora_alpha 8 was asked for", "--lora-alpha 2r"]),
        ({"use_rslora": True}, ["lora_alpha 8 with rsLoRA", "lora_alpha 8 was asked for"]),
        ({"base_model_name_or_path": "gpt2"}, ["'gpt2'", "'llama'"]),
        ({"peft_type": "ADALORA"}, ["no LoRA adapter", "ADALORA"]),
    ],
)
def test_another_adapter_than_asked_for(
    tmp_path: Path, changes: dict[str, object], words: list[str]
) -> None:
    write_adapter(tmp_path, 4, 8, 0)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UnusableTrialError) as caught:
        read_trained_adapter(tmp_path, TRIAL, "llama")
    for word in words:
        assert word in str(caught.value)


def test_another_rank(tmp_path: Path) -> None:
    write_adapter(tmp_path, 5, 8, 0)
    with pytest.raises(UnusableTrialError, match=r"has rank 5 .* and 4 was asked for"):
        read_trained_adapter(tmp_path, TRIAL, "llama")


def test_weights_that_are_not_finite_have_diverged(tmp_path: Path) -> None:
    write_adapter(tmp_path, 4, 8, 0, nan=True)
    assert read_trained_adapter(tmp_path, TRIAL, "llama") is None


def test_a_machine_out_of_memory_is_no_failure_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path, 4, 8, 0)
    errors = [MemoryError(), OSError(errno.EMFILE, "x"), MemoryError("Unable to allocate 8.0 EiB")]

    def load_file(path: Path) -> None:
        raise errors.pop(0)

    monkeypatch.setattr("safetensors.torch.load_file", load_file)
    for kind in (ExhaustedError, ExhaustedError, UnusableTrialError):
        with pytest.raises(kind):
            read_trained_adapter(tmp_path, TRIAL, None)


def test_names_of_the_same_model(tmp_path: Path) -> None:
    for place in ("a/x", "b/x"):
        (tmp_path / place).mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a/x")
    assert same_model("owner/Name", "copies/name")
    assert same_model(str(link), str(tmp_path / "a/x"))
    assert not same_model(str(tmp_path / "a/x"), str(tmp_path / "b/x"))
    assert not same_model("owner/one", "owner/two")
