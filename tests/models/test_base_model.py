import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from rankwise.engine.adapter_init import attach_adapter, saved_modules
from rankwise.engine.evaluate import padded_logits
from rankwise.engine.trial import Trial
from rankwise.errors import RankwiseError, RequestError
from rankwise.formatting import plain_bytes
from rankwise.models.base_model import Loading, load_base
from rankwise.tasks.base import Encoded
from rankwise.tasks.losses import ClassificationObjective, CompletionObjective
from rankwise.tasks.splits import number_examples
from tests.conftest import save_tokenizer
from tests.factories import chat
from tests.tiny_models import MULTIMODAL, dialogues_task, save_tiny, save_tiny_lm

LABELS = ("bad", "good")


def test_modules_missing_from_the_checkpoint_are_trained_in_full(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_model), ClassificationObjective(LABELS), ["all-linear"], [4])
    assert base.newly_initialized == ("classifier",)
    assert set(base.trained_in_full) == {"classifier"}
    assert base.model.config.id2label == {0: "bad", 1: "good"}
    # MiniLM-L6 comes without the pooler's weights.
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = {
        key: value
        for key, value in load_file(tiny_model / "model.safetensors").items()
        if "pooler" not in key
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base = load_base(str(tmp_path), ClassificationObjective(LABELS), ["all-linear"], [4])
    assert set(base.newly_initialized) == {"bert.pooler", "classifier"}
    assert not any("pooler" in name for name in base.targets)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_part_of_a_loaded_head_is_trained_in_full(quantization: str, tmp_path: Path) -> None:
    directory = save_tiny("distilbert", tmp_path)
    AutoModelForSequenceClassification.from_pretrained(directory).save_pretrained(directory)
    base = load_base(
        str(directory),
        ClassificationObjective(LABELS),
        "all-linear",
        [4],
        quantization=quantization,
    )
    assert not base.newly_initialized
    trial = Trial(rank=4, seed=0, learning_rate=1e-3, lora_alpha=4.0, use_rslora=False)
    model = attach_adapter(base, trial, saved_modules(base))
    trained = {
        name.removeprefix("base_model.model.").split(".modules_to_save")[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora" not in name
    }
    assert trained == set(base.trained_in_full) == {"pre_classifier", "classifier"}


def test_dropout_is_off_everywhere(tiny_model: Path) -> None:
    base = load_base(str(tiny_model), ClassificationObjective(LABELS), ["all-linear"], [4])
    base.model.train()
    tokens = torch.tensor([[2, 5, 6, 3]])
    assert torch.equal(base.model(input_ids=tokens).logits, base.model(input_ids=tokens).logits)


def test_a_decoder_without_a_padding_token_gets_one(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    save_tokenizer(tmp_path)
    GPT2Model(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    ).save_pretrained(tmp_path)
    base = load_base(str(tmp_path), ClassificationObjective(LABELS), ["all-linear"], [4])
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id is not None
    assert base.newly_initialized == ("score",)
    assert base.max_length == 24


def roberta(directory: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=save_tokenizer(directory),
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=1,
        **sizes,
    )
    RobertaModel(config).save_pretrained(directory)


def test_the_classifier_of_a_multimodal_model_takes_batches(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gemma3", **MULTIMODAL["gemma3"])
    for part in (config, config.get_text_config()):
        part.pad_token_id = None
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    base = load_base(str(tmp_path), ClassificationObjective(LABELS), "all-linear", [4])
    examples = Encoded((0, 1), [[5, 6, 7], [5, 6, 7, 8, 9]], (0, 1))
    both = padded_logits(base.model, base.tokenizer, examples)  # (2, 2)
    alone = torch.cat(
        [padded_logits(base.model, base.tokenizer, examples.take([row])) for row in (0, 1)]
    )
    torch.testing.assert_close(both, alone)


def test_positions_limit_the_longest_input(tmp_path: Path) -> None:
    roberta(tmp_path)
    base = load_base(str(tmp_path), ClassificationObjective(LABELS), ["all-linear"], [4])
    assert base.max_length == 32  # 34 positions, counted from behind the padding index 1
    base.model(input_ids=torch.full((1, base.max_length), 5))
    with pytest.raises((IndexError, RuntimeError), match="index"):
        base.model(input_ids=torch.full((1, base.max_length + 1), 5))


def without_special_tokens(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for file in directory.glob("*tok*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(directory)


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weight(directory: Path, value: float) -> None:
    """Write one weight of one layer anew."""
    tensors = load_file(directory / "model.safetensors")
    name = next(name for name in tensors if name.endswith("attention.output.dense.weight"))
    tensors[name][3, 2] = value
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            r"pickle only \(pytorch_model.bin\)",
        ),
        (lambda d: (d / "model.safetensors").unlink(), r"has no weights \(\*.safetensors\)"),
        (lambda d: (d / "model.safetensors").write_bytes(b"broken"), "cannot be loaded"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "nonesuch"}'),
            "cannot be loaded.*nonesuch",
        ),
        (lambda d: (d / "config.json").write_text("{"), "cannot be loaded"),
        (
            lambda d: change_config(d, pad_token_id=1 << 20),
            "cannot be loaded: pad_token_id must be below vocab_size",
        ),
        (lambda d: [file.unlink() for file in d.glob("tok*")], "has no tokenizer"),
        (without_special_tokens, "neither a padding nor an end-of-sequence token"),
        (
            lambda d: change_weight(d, math.nan),
            "dense.weight has weights that are not finite in fp32",
        ),
        (lambda d: change_weight(d, -math.inf), "dense.weight has weights that are not finite"),
    ],
)
def test_a_broken_model_is_refused(
    tiny_model: Path, tmp_path: Path, break_it: Any, words: str
) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    break_it(tmp_path)
    with pytest.raises(RequestError, match=words) as caught:
        load_base(str(tmp_path), ClassificationObjective(LABELS), ["all-linear"], [4])
    assert "\n" not in str(caught.value)


def test_a_wrong_model_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such directory"):
        load_base(str(tmp_path / "absent"), ClassificationObjective(LABELS), ["all-linear"], [4])
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="is a file, not a directory"):
        load_base(str(tmp_path / "file"), ClassificationObjective(LABELS), ["all-linear"], [4])


def test_modules_that_a_model_keeps_in_fp32_stay_there(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": save_tokenizer(tmp_path),
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    }
    config = AutoConfig.for_model("glm4_moe", **sizes, pad_token_id=0, eos_token_id=3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    targets = ["q_proj", "v_proj"]
    loading = Loading("cpu", "bf16")
    base = load_base(str(tmp_path), CompletionObjective(), targets, [4], loading=loading)
    tensors = {**dict(base.model.named_parameters()), **dict(base.model.named_buffers())}
    kept = {
        name.rpartition(".")[2] for name, each in tensors.items() if each.dtype != torch.bfloat16
    }
    assert kept >= {"e_score_correction_bias"}
    assert kept <= {"e_score_correction_bias", "inv_freq", "original_inv_freq"}
    assert base.compute_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("precision", "quantization", "size", "changes"),
    [
        ("fp32", "none", 4, "--precision bf16 or --quantization nf4 or another --device"),
        ("bf16", "nf4", 2, "another --device"),
    ],
)
def test_a_model_that_does_not_fit_its_device_is_refused_in_one_line(
    precision: str, quantization: str, size: int, changes: str, tmp_path: Path, monkeypatch: Any
) -> None:
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    directory = save_tiny("bert", tmp_path)
    objective = ClassificationObjective(("no", "yes"))
    model = load_base(str(directory), objective, ["all-linear"], [4]).model
    expected = plain_bytes(size * sum(weight.numel() for weight in model.parameters()))

    def too_much(*_: Any, **__: Any) -> Any:
        return torch.empty(2**50, dtype=torch.uint8)

    owner, name = type(model), "from_pretrained"
    if quantization != "none":  # transformers catches what happens here, and only logs it
        from transformers.integrations.bitsandbytes import Bnb4bitQuantize

        owner, name = Bnb4bitQuantize, "convert"
    monkeypatch.setattr(owner, name, too_much)
    loading = Loading("cpu", precision)
    with pytest.raises(RankwiseError) as caught:
        load_base(str(directory), objective, ["all-linear"], [4], quantization, loading)
    message = str(caught.value)
    assert "does not fit on cpu: its weights take" in message
    assert f" {expected} in {precision}" in message
    assert message.endswith(f" are free; take {changes}")
    assert caught.value.exit_code == 1
    assert len(message.splitlines()) == 1


def test_a_tokenizer_larger_than_the_embedding_serves_texts_without_the_tokens_too_many(
    tmp_path: Path,
) -> None:
    directory = save_tiny_lm("llama", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["surplus"])
    tokenizer.add_special_tokens({"pad_token": "[EXTRA]"})
    tokenizer.save_pretrained(directory)
    base = load_base(str(directory), CompletionObjective(), ["all-linear"], [4])
    assert base.tokenizer.pad_token == "[SEP]"
    task = dialogues_task()
    encoded, _ = base.encode(task, task.train, 64)
    assert len(encoded)
    with_surplus = chat((("user", "the film"), ("assistant", "surplus")))
    examples = number_examples([with_surplus], [None])
    with pytest.raises(
        RequestError, match=r"rows of embeddings.*'surplus'.*resize_token"
    ) as caught:
        base.encode(task, examples, 64)
    assert "\n" not in str(caught.value)
