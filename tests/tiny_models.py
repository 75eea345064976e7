"""Tiny random models of many architectures.

The first half trains in a second (TINY, with made-up reviews or dialogues); the second half has
enough blocks to check a memory plan against a real training step (SMALL).
"""

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.models.auto import CLASSIFIER_HEADS
from rankwise.models.base_model import BaseModel, Loading, load_base
from rankwise.models.device import DTYPES
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.setup import training_batch
from rankwise.planning.meta_model import load_meta_model, quiet_libraries
from rankwise.planning.params import lora_config
from rankwise.planning.prepare import make_skeleton
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.base import Encoded, Task
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from tests.conftest import make_reviews, save_tokenizer

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
TINY_GROUPED = {**TINY, "num_key_value_heads": 2}
TINY_WIDE = {**TINY_GROUPED, "head_dim": 16}
PACKABLE: dict[str, dict[str, Any]] = {
    "bert": TINY,
    "roberta": TINY,
    "electra": {**TINY, "embedding_size": 24},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 80,
    },
    "modernbert": {
        **TINY,
        "num_hidden_layers": 4,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80},
    "gpt_neox": TINY,
    "opt": {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "llama": TINY_GROUPED,
    "mistral": {**TINY_GROUPED, "sliding_window": 5},
    "qwen2": TINY_GROUPED,
    "qwen3": TINY_WIDE,
    "gemma": TINY_WIDE,
    "gemma2": {
        **TINY_WIDE,
        "num_hidden_layers": 4,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        **TINY_WIDE,
        "num_hidden_layers": 4,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "phi": TINY,
    "phi3": TINY_GROUPED,  # Phi-4 is of this class
    "smollm3": {**TINY_GROUPED, "num_hidden_layers": 4, "no_rope_layer_interval": 2},
    # A token goes to all experts: where it must choose, rounding decides between near equals.
    "gpt_oss": {  # attention sinks
        **TINY_WIDE,
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 4,
    },
    "mixtral": {**TINY_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 4},
    "qwen3_moe": {
        **TINY_WIDE,
        "num_experts": 4,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 24,
    },
}
PACKABLE_LMS: dict[str, dict[str, Any]] = {  # without a classifier in transformers
    "granite": {
        **TINY_GROUPED,
        "logits_scaling": 8.0,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
    },
    "cohere": {**TINY_GROUPED, "logit_scale": 0.25},
}
# PEFT cannot adapt DistilBERT's pre_classifier.
TINY_TARGETS = {"distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]}
FP32 = Loading("cpu", "fp32")
SPECIAL_TOKENS = {
    "pad_token_id": 0,
    "cls_token_id": 2,
    "bos_token_id": 2,
    "sep_token_id": 3,
    "eos_token_id": 3,
}


def save_tiny(name: str, directory: Path, **changes: Any) -> Path:
    """Save a tiny model without a head, and its tokenizer."""
    torch.manual_seed(0)
    settings = {
        **PACKABLE.get(name, TINY),
        **SPECIAL_TOKENS,
        "vocab_size": save_tokenizer(directory),
        **changes,
    }
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, **settings))
    model.base_model.save_pretrained(directory)
    return directory


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Limit PyTorch to this many threads; with one thread, all trials of a pack share each pass."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def reviews_task() -> Task:
    """Return the task of 800 made-up reviews, read once."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "reviews.csv"
        make_reviews(800).to_csv(data, index=False)
        return load_task(SweepConfig(data=data))


@cache
def dialogues_task() -> Task:
    """Return the task of 600 made-up dialogues, read once."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "dialogues.jsonl"
        pd.DataFrame(make_dialogues(600)).to_json(data, orient="records", lines=True)
        return load_task(SweepConfig(data=data))


def load_tiny(
    name: str,
    directory: Path,
    ranks: tuple[int, ...] = (4,),
    quantization: str = "none",
    targets: list[str] | None = None,
    loading: Loading = FP32,
) -> tuple[BaseModel, Encoded, Encoded]:
    """Return a tiny classifier with 400 training and 40 held-out reviews."""
    task = reviews_task()
    model, targets = (
        str(save_tiny(name, directory)),
        targets or TINY_TARGETS.get(name, ["all-linear"]),
    )
    base = load_base(model, task.objective, targets, ranks, quantization, loading)
    train, held_out = (
        encode(part, base.tokenizer, 64)[0].take(range(count))
        for part, count in ((task.train, 400), (task.held_out, 40))
    )
    return base, train, held_out


CHAT = (
    "{% for m in messages %}{{ 'film ' if m.role == 'user' else 'actor ' }}"
    "{{ m.content }}{{ ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}actor {% endif %}"
)


def save_tiny_lm(name: str, directory: Path, **changes: Any) -> Path:
    """Save a tiny causal language model; its tokenizer has a chat template and [SEP] at the end."""
    torch.manual_seed(0)
    settings = {
        **{**PACKABLE, **PACKABLE_LMS}[name],
        **SPECIAL_TOKENS,
        "vocab_size": save_tokenizer(directory),
        **changes,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)).save_pretrained(
        directory
    )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.eos_token, tokenizer.chat_template = "[SEP]", CHAT
    tokenizer.save_pretrained(directory)
    return directory


def save_lm_inputs(directory: Path, dialogues: int) -> dict[str, Any]:
    """Save a tiny Llama and dialogues; return the settings of a sweep of ranks 2 and 4 on them."""
    data = directory / "dialogues.jsonl"
    pd.DataFrame(make_dialogues(dialogues)).to_json(data, orient="records", lines=True)
    model = str(save_tiny_lm("llama", directory / "model"))
    return {"model": model, "data": data, "ranks": (2, 4)}


def make_dialogues(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return made-up dialogues as ``messages``; each answer repeats words of its question."""
    table, chooser = make_reviews(2 * count, seed), random.Random(seed)
    texts = iter(table["text"])
    dialogues: list[dict[str, Any]] = []
    for _ in range(count):
        turns = []
        for _ in range(chooser.randint(1, 2)):
            question = next(texts)
            turns += [
                ("user", question),
                ("assistant", " ".join(question.split()[: chooser.randint(1, 4)])),
            ]
        dialogues.append(
            {"messages": [{"role": role, "content": content} for role, content in turns]}
        )
    return dialogues


def load_tiny_lm(
    name: str, directory: Path, ranks: tuple[int, ...] = (4,), loading: Loading = FP32
) -> tuple[BaseModel, Encoded, Encoded]:
    """Return a tiny causal language model with 400 training and 40 held-out dialogues."""
    task = dialogues_task()
    model = str(save_tiny_lm(name, directory))
    base = load_base(model, task.objective, ["all-linear"], ranks, loading=loading)
    train, held_out = (
        task.encoder(part, base.tokenizer, 64)[0] for part in (task.train, task.held_out)
    )
    return base, train.take(range(400)), held_out.take(range(40))


SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
SMALL_GROUPED = {**SMALL, "num_key_value_heads": 2}
T5 = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 6, "vocab_size": 1000}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": {**SMALL, "max_position_embeddings": 258},
    "distilbert": {"dim": 128, "n_layers": 6, "n_heads": 4, "hidden_dim": 256, "vocab_size": 1000},
    "deberta-v2": {
        **SMALL,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "gpt2": {"n_embd": 128, "n_layer": 6, "n_head": 4, "vocab_size": 1000, "n_positions": 256},
    "gpt_neox": SMALL,
    "opt": {**SMALL, "ffn_dim": 256, "word_embed_proj_dim": 128},
    "llama": {**SMALL_GROUPED, "tie_word_embeddings": False},
    "mistral": SMALL_GROUPED,
    "qwen2": {**SMALL_GROUPED, "tie_word_embeddings": True},
    "qwen3": {**SMALL_GROUPED, "head_dim": 32},
    # Every other layer attends to a window.
    "gemma2": {**SMALL_GROUPED, "head_dim": 32, "num_hidden_layers": 10, "sliding_window": 32},
    "phi": SMALL,
    "t5": {**T5, "num_decoder_layers": 5},
    "mt5": {**T5, "num_decoder_layers": 6, "feed_forward_proj": "gated-gelu"},
    "mixtral": {**SMALL_GROUPED, "num_local_experts": 4},
    "qwen2_moe": {
        **SMALL_GROUPED,
        "num_experts": 4,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "num_experts_per_tok": 2,
    },
    "vit": {**SMALL, "image_size": 64, "patch_size": 16},
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
MULTIMODAL: dict[str, dict[str, Any]] = {  # their settings lie in nested configs
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
SMALL_TEXT = {**TEXT, "hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 96}
TOWER = {**VISION, "num_attention_heads": 2, "num_hidden_layers": 5, "image_size": 56}
CLIP = {**TOWER, "patch_size": 14, "model_type": "clip_vision_model"}
VISION_LANGUAGE: dict[str, dict[str, Any]] = {
    "gemma3": MULTIMODAL["gemma3"],
    "qwen2_5_vl": {
        **SMALL_TEXT,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {**VISION, "depth": 5, "out_hidden_size": 64},
    },
    "qwen3_vl": {
        "text_config": {
            **SMALL_TEXT,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        "vision_config": {**VISION, "depth": 5, "out_hidden_size": 64},
    },
    "llava": {"text_config": {**SMALL_TEXT, "model_type": "llama"}, "vision_config": CLIP},
    "mistral3": {
        "text_config": {**SMALL_TEXT, "model_type": "mistral"},
        "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 16},
    },
    "smolvlm": {"text_config": {**SMALL_TEXT, "model_type": "llama"}, "vision_config": TOWER},
    "llama4": {
        "text_config": {**SMALL_TEXT, "intermediate_size_mlp": 96, "num_local_experts": 4},
        "vision_config": {
            **TOWER,
            "intermediate_size": 128,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "vision_output_dim": 64,
        },
    },
}
HYBRIDS: dict[str, dict[str, Any]] = {  # with layers of Mamba
    "falcon_h1": {
        **SMALL_TEXT,
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
        "mamba_d_head": 16,
        "mamba_n_heads": 4,
        "mamba_chunk_size": 32,
    },
    "nemotron_h": {
        **SMALL_TEXT,
        "layers_block_type": ["mamba", "attention", "mlp"] * 4,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 32,
    },
}

SHARED: dict[str, dict[str, Any]] = {  # with transformers that several layers share
    "zamba2": {
        **SMALL_TEXT,
        "num_hidden_layers": 12,
        "layers_block_type": ["mamba", "hybrid", "mamba"] * 4,
        "num_mem_blocks": 2,
        "adapter_rank": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "mamba_d_state": 16,
        "chunk_size": 32,
    },
}


def write_config(directory: Path, name: str, **changes: Any) -> str:
    """Write an architecture's config.json and return the directory as a model's name."""
    directory.mkdir(parents=True, exist_ok=True)
    known = {**ARCHITECTURES, **VISION_LANGUAGE, **MULTIMODAL, **HYBRIDS, **SHARED}
    content = {"model_type": name, **known[name], **changes}
    (directory / "config.json").write_text(json.dumps(content))
    return str(directory)


def request(model: str, **settings: Any) -> PlanConfig:
    """Return the settings of a plan for a small model on the CPU."""
    values = {"ranks": (8,), "precision": "fp32", "batch_size": 4, "seq_len": 64, "device": "cpu"}
    return PlanConfig(model=model, **{"target_modules": "all-linear", **values, **settings})


def real_model(
    config: PlanConfig, directory: Path, rank: int, weights: nn.Module | None = None
) -> PeftModel:
    """Return a real model with an adapter, set up for training as the libraries' guides do.

    Args:
        config: settings of the plan.
        directory: where weights are saved, for quantisation to load.
        rank: r.
        weights: the base model; random by default.
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
        peft_model = get_peft_model(model, lora_config(config, rank, meta.task_type, model))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return peft_model.train()


def _quantized(model: Any, attention: str, config: PlanConfig, directory: Path) -> Any:
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
        how.llm_int8_skip_modules = list(CLASSIFIER_HEADS)
    quantized = type(model).from_pretrained(
        directory / "weights", quantization_config=how, dtype=dtype, attn_implementation=attention
    )
    return prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=False)


def measured_peak(model: PeftModel, config: PlanConfig, parts: int = 1) -> int:
    """Run two real training steps on the CPU and return the second one's peak of live bytes.

    A step has so many equal parts, whose gradients are summed.
    """
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
        output = None
        for _ in range(parts):
            del output  # of the part before
            with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
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
    """Return the tensors of bitsandbytes layers that are not parameters."""
    scales: list[torch.Tensor] = []
    module: Any
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            scales += [state.absmax, state.code]
            if state.nested:
                scales += [state.offset, state.state2.absmax, state.state2.code]
        elif type(module).__name__ == "Linear8bitLt" and hasattr(module, "state"):
            scales.append(module.state.SCB if module.state.SCB is not None else module.weight.SCB)
    return scales
