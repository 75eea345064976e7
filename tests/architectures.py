"""Small random models of many architectures, and real training steps of theirs to hold predictions against."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn

from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.setup import DTYPES, training_batch
from rankwise.planning.meta_model import load_meta_model, quiet_libraries
from rankwise.planning.params import TRAINED_HEADS, lora_config, make_skeleton

BASE = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
GROUPED = {**BASE, "num_key_value_heads": 2}
T5 = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 6, "vocab_size": 1000}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": BASE,
    "roberta": {**BASE, "max_position_embeddings": 258},
    "distilbert": {"dim": 128, "n_layers": 6, "n_heads": 4, "hidden_dim": 256, "vocab_size": 1000},
    "deberta-v2": {
        **BASE,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "gpt2": {"n_embd": 128, "n_layer": 6, "n_head": 4, "vocab_size": 1000, "n_positions": 256},
    "gpt_neox": BASE,
    "opt": {**BASE, "ffn_dim": 256, "word_embed_proj_dim": 128},
    "llama": {**GROUPED, "tie_word_embeddings": False},
    "mistral": GROUPED,
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 32},
    # Every other layer attends to a window.
    "gemma2": {**GROUPED, "head_dim": 32, "num_hidden_layers": 10, "sliding_window": 32},
    "phi": BASE,
    "t5": {**T5, "num_decoder_layers": 5},
    "mt5": {**T5, "num_decoder_layers": 6, "feed_forward_proj": "gated-gelu"},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "qwen2_moe": {
        **GROUPED,
        "num_experts": 4,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "num_experts_per_tok": 2,
    },
    "vit": {**BASE, "image_size": 64, "patch_size": 16},
    "whisper": {
        "d_model": 128,
        "encoder_layers": 6,
        "decoder_layers": 5,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 256,
        "decoder_ffn_dim": 256,
        "vocab_size": 1000,
        "num_mel_bins": 16,
        "max_source_positions": 64,
        "max_target_positions": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
}
TEXT = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000}
VISION = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
OF_PARTS: dict[str, dict[str, Any]] = {  # whose settings lie in configs of their own
    "gemma3": {
        "text_config": {
            **TEXT,
            "hidden_size": 64,
            "num_hidden_layers": 24,
            "intermediate_size": 96,
        },
        "vision_config": {
            **VISION,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "image_size": 56,
        },
    },
    "qwen3_5": {
        "text_config": {
            **TEXT,
            "hidden_size": 64,
            "num_hidden_layers": 16,
            "intermediate_size": 96,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "vision_config": {**VISION, "depth": 2, "out_hidden_size": 64},
    },
}


def write_config(directory: Path, name: str, **changes: Any) -> str:
    """Write an architecture's config.json and return the directory as a model's name."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"model_type": name, **{**ARCHITECTURES, **OF_PARTS}[name], **changes}
    (directory / "config.json").write_text(json.dumps(content))
    return str(directory)


def request(model: str, **settings: Any) -> PlanConfig:
    """Return a plan's request for a small model on the CPU."""
    values = {"ranks": (8,), "precision": "fp32", "batch_size": 4, "seq_len": 64, "device": "cpu"}
    return PlanConfig(model=model, **{"target_modules": "all-linear", **values, **settings})


def real_model(
    config: PlanConfig, directory: Path, rank: int, weights: nn.Module | None = None
) -> PeftModel:
    """Return a real model with its adapter, set up for training as the libraries' guides do.

    Args:
        config: the request.
        directory: to save weights in, which quantisation reads.
        rank: r.
        weights: the base; default: random.
    """
    dtype = DTYPES[config.precision]
    attention = "eager" if config.attention == "eager" else "sdpa"
    meta = load_meta_model(config.model, dtype, task_type=config.task_type, attention=attention)
    if weights is None:
        weights = type(meta.model)(meta.config).to(dtype)
    model: Any = weights
    model.requires_grad_(False)
    model.config._attn_implementation = meta.attention
    if config.quantization != "none":
        model = _quantized(model, meta.attention, config, directory)
    model.config.use_cache = False
    with quiet_libraries():
        peft_model = get_peft_model(model, lora_config(config, rank, meta.task_type))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return peft_model.train()


def _quantized(model: Any, attention: str, config: PlanConfig, directory: Path) -> Any:
    from transformers import BitsAndBytesConfig

    dtype = DTYPES[config.precision]
    model.save_pretrained(directory / "weights")
    if config.quantization == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=config.quantization == "nf4-dq",
        )
    if "Classification" in type(model).__name__:
        how.llm_int8_skip_modules = list(TRAINED_HEADS)
    quantized = type(model).from_pretrained(
        directory / "weights", quantization_config=how, dtype=dtype, attn_implementation=attention
    )
    return prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=False)


def measured_peak(model: PeftModel, config: PlanConfig) -> int:
    """Run two real training steps on the CPU and return the second one's peak of live bytes."""
    attention = "eager" if config.attention == "eager" else "sdpa"
    meta = load_meta_model(
        config.model, DTYPES[config.precision], task_type=config.task_type, attention=attention
    )
    shapes = training_batch(make_skeleton(meta, config), config)
    batch = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.items()}
    for name in ("input_ids", "labels"):
        if name in batch and batch[name].dim() == 2:
            batch[name] = torch.randint(3, 1000, batch[name].shape)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad]
    )

    def step() -> None:
        output = model(**batch)
        output.loss.backward()
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    states = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    resident = [*model.parameters(), *model.buffers(), *batch.values(), *states, *_scales(model)]
    return peak_live_bytes(step, resident)


def _scales(model: nn.Module) -> list[torch.Tensor]:
    """Return bitsandbytes' tensors that are no parameters."""
    found: list[torch.Tensor] = []
    module: Any
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            found += [state.absmax, state.code]
            if state.nested:
                found += [state.offset, state.state2.absmax, state.state2.code]
        elif type(module).__name__ == "Linear8bitLt" and hasattr(module, "state"):
            found.append(module.state.SCB if module.state.SCB is not None else module.weight.SCB)
    return found
