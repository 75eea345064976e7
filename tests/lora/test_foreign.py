"""Directories and files that hold no PEFT LoRA adapter are named for what they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, PeftModel, get_peft_model, save_as_lora
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from rankwise.errors import RequestError
from rankwise.lora import read_adapter, spectrum, write_adapter
from tests.lora.adapters import make_adapter

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 41\n"
MLX_CONFIG = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 20.0}}
WEIGHTS = "adapter_model.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as error:
        read_adapter(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def write_config(directory: Path, content: dict[str, Any]) -> None:
    (directory / "adapter_config.json").write_text(json.dumps(content))


def write_tensors(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.ones(4, 2) for name in names}, path)


def test_a_git_lfs_pointer_is_named_and_what_is_pulled_is_read(tmp_path: Path) -> None:
    write_adapter(make_adapter(), tmp_path / "a")
    weights = tmp_path / "a" / WEIGHTS
    pulled = weights.read_bytes()
    weights.write_text(POINTER)
    assert "is a git-lfs pointer, not the weights; run git lfs pull" in refusal(tmp_path / "a")
    assert "git-lfs pointer" in refusal(weights.rename(tmp_path / "lora.safetensors"))
    weights.write_bytes(pulled)
    assert read_adapter(tmp_path / "a")


def test_an_adapter_of_mlx_is_named_and_its_advice_leads_to_the_same_update(tmp_path: Path) -> None:
    a, b = torch.randn(16, 4), torch.randn(4, 12)  # MLX adds scale * (x @ lora_a) @ lora_b
    name = "model.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_a": a, f"{name}.lora_b": b}, tmp_path / "adapters.safetensors")
    write_config(tmp_path, MLX_CONFIG)
    assert "is an adapter of MLX (fine_tune_type" in refusal(tmp_path)
    converted = {f"{name}.lora_A.weight": a.T, f"{name}.lora_B.weight": b.T}
    save_file({key: each.contiguous() for key, each in converted.items()}, tmp_path / WEIGHTS)
    write_config(tmp_path, {"peft_type": "LORA", "r": 4, "lora_alpha": 20.0 * 4})
    (layer,) = spectrum(read_adapter(tmp_path)).layers
    expected = torch.linalg.svdvals(20.0 * (a @ b))[:4]
    torch.testing.assert_close(layer.singular_values.float(), expected)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_down_blocks_0_to_q.lora_down.weight"], "in kohya's format"),
        (["lora_te1_text_model_q_proj.alpha"], "in kohya's format"),
        (["lycoris_blocks_0.hada_w1_a"], "in kohya's format"),
        (["unet.down_blocks.0.to_q.lora_A.weight"], "in diffusers' format"),
        (["transformer.blocks.0.attn.to_q.lora.down.weight"], "in diffusers' format"),
        (["down_blocks.0.attn1.processor.to_q_lora.down.weight"], "in diffusers' old format"),
        (["diffusion_model.blocks.0.q.lora_A.weight"], "in ComfyUI's format"),
        (["layers.0.attn.q_proj.lora_a.weight"], "of torchtune"),
        (["h.0.attn.lora_A", "h.0.attn.lora_B"], "of loralib or LitGPT"),
        (["model.layers.0.q_proj.lora_a"], "of MLX"),
    ],
)
def test_other_formats_are_known_by_their_tensors(
    names: list[str], words: str, tmp_path: Path
) -> None:
    write_tensors(tmp_path / "lora.safetensors", *names)
    assert words in refusal(tmp_path)
    assert words in refusal(tmp_path / "lora.safetensors")
    (tmp_path / "lora.safetensors").rename(tmp_path / WEIGHTS)
    write_config(tmp_path, {"peft_type": "LORA", "r": 2})
    assert words in refusal(tmp_path)


def touch(*names: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        for name in names:
            (directory / name).write_text("{}")

    return write


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (touch(), "the directory has no adapter_config.json; allowed is a directory with"),
        (touch("adapter_model.bin"), "adapter_model.bin may be pickles, which are not read"),
        (touch("pytorch_lora_weights.bin", "x.pt"), "pytorch_lora_weights.bin, x.pt may be"),
        (touch("lora.gguf"), "llama.cpp's adapters (*.gguf) are not read"),
        (touch("config.json", "model.safetensors"), "holds a model and no adapter"),
        (touch(WEIGHTS), "no adapter_config.json, which has the rank and alpha"),
    ],
)
def test_a_directory_without_a_config_is_named_by_its_files(
    prepare: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    prepare(tmp_path)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("folders", "likeliest"),
    [
        (["adapter"], "adapter"),
        (["checkpoint-500", "checkpoint-1500", "checkpoint-1000"], "checkpoint-1500"),
        (["epoch_0", "epoch_1"], "epoch_1"),
        (["checkpoint-20", "best"], "best"),
        (["checkpoint-20/adapter_model"], "checkpoint-20/adapter_model"),
        (["snapshots/1f0a"], "snapshots/1f0a"),
    ],
)
def test_an_adapter_below_is_hinted_at_by_a_path_that_is_read(
    folders: list[str], likeliest: str, tmp_path: Path
) -> None:
    for folder in folders:
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        write_adapter(make_adapter(), tmp_path / folder)
    message = refusal(tmp_path)
    assert f"did you mean {str(tmp_path / likeliest)!r}?" in message
    assert (f"it holds {len(folders)} adapters" in message) == (len(folders) > 1)
    assert read_adapter(tmp_path / likeliest)


def test_a_path_that_does_not_exist_is_met_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(make_adapter(), tmp_path / "my-adapter")
    assert "no such directory" in refusal(tmp_path / "my-adaptr")
    assert "(did you mean 'my-adapter'?)" in refusal(tmp_path / "my-adaptr")
    assert repr(str(tmp_path / "my-adapter")) in refusal(tmp_path / "my-adapter" / WEIGHTS)
    monkeypatch.chdir(tmp_path)
    message = refusal(Path("someone/llama-lora"))
    assert "hf download someone/llama-lora --local-dir llama-lora" in message


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    write_adapter(make_adapter(), tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert read_adapter(tmp_path / "a").config["r"] == 6


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_class": "BertModel", "config": {"r": 8}}, "of the library adapters (AdapterHub)"),
        ({"peft_type": "IA3"}, "is of PEFT type 'IA3'; allowed is 'LORA'; it scales activations"),
        ({"peft_type": "ADALORA"}, "multiply E into A"),
        ({"peft_type": "VERA"}, "peft.save_as_lora"),
        ({"peft_type": "NEW"}, "is of PEFT type 'NEW'; allowed is 'LORA'"),
        ({"r": 8}, "is of PEFT type None; allowed is 'LORA'"),
        ([1], "holds a list; allowed is an object"),
    ],
)
def test_configs_that_are_not_of_a_lora_are_named(config: Any, words: str, tmp_path: Path) -> None:
    write_config(tmp_path, config)
    assert words in refusal(tmp_path)


def test_weights_elsewhere_are_hinted_at(tmp_path: Path) -> None:
    write_config(tmp_path, {"peft_type": "LORA"})
    assert "the directory has no adapter_model.safetensors" in refusal(tmp_path)
    write_tensors(tmp_path / "adapter.safetensors", "x")
    assert "rename adapter.safetensors if that is it" in refusal(tmp_path)
    write_adapter(make_adapter(), tmp_path / "checkpoint-3")
    assert "did you mean" in refusal(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert "pickle only (adapter_model.bin)" in refusal(tmp_path)


def tiny_llama() -> torch.nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=32, num_hidden_layers=1, num_key_value_heads=1, **sizes)
    )


def test_the_advice_for_loha_leads_to_an_adapter_that_is_read(tmp_path: Path) -> None:
    config = LoHaConfig(r=2, target_modules=["q_proj"])
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path / "loha")
    assert "call peft.save_as_lora(directory, model, rank=16)" in refusal(tmp_path / "loha")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "loha")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_as_lora(tmp_path / "lora", model, rank=4)
    assert spectrum(read_adapter(tmp_path / "lora")).largest_rank == 4


def test_the_advice_for_pickles_leads_to_an_adapter_that_is_read(tmp_path: Path) -> None:
    write_adapter(make_adapter(dtype=torch.float32), tmp_path / "a")
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    torch.save(tensors, tmp_path / "a" / "adapter_model.bin")
    (tmp_path / "a" / WEIGHTS).unlink()
    message = refusal(tmp_path / "a")
    assert "load it with torch.load(path, weights_only=True)" in message
    loaded = torch.load(tmp_path / "a" / "adapter_model.bin", weights_only=True)
    save_file(loaded, tmp_path / "a" / WEIGHTS)
    assert read_adapter(tmp_path / "a").tensors.keys() == tensors.keys()


def test_ia3_as_peft_saves_it_is_refused_by_its_name(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    assert "no factors A and B" in refusal(tmp_path)
