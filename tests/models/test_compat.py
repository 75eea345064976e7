"""Tests of every private name that models/compat.py uses; a failure says which name is gone."""

import importlib
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from rankwise.models.compat import (
    AttentionCall,
    attention_backward,
    attention_implementation,
    cpu_attention,
    cpu_fuses_attention,
    dequantize_bnb,
    expand_all_linear,
    fix_bnb_layout,
    fold_experts_without_autocast,
    grouped_matmul,
    intercept_operators,
    math_attention,
    quantized_bits,
    quantized_tensors,
    quiet_libraries,
    reads_value,
    register_adapter_classes,
    reinitialize,
    softmax_to_fp32,
    tensors_in,
    trainer_with_sampler,
    use_at_most_one_gpu,
)

PRIVATE_NAMES = [  # module, name inside it, function of compat that uses it
    ("torch.utils._python_dispatch", "TorchDispatchMode", "intercept_operators"),
    ("torch.utils._pytree", "tree_leaves", "tensors_in"),
    ("torch", "ops.aten._scaled_dot_product_attention_math", "math_attention"),
    ("torch", "ops.aten._scaled_dot_product_flash_attention", "flash_attention"),
    ("torch", "ops.aten._scaled_dot_product_efficient_attention", "efficient_attention"),
    ("torch", "ops.aten._scaled_dot_product_flash_attention_for_cpu", "cpu_attention"),
    ("torch", "_fused_sdp_choice", "cpu_fuses_attention"),
    ("torch", "ops.aten._softmax", "softmax_to_fp32"),
    ("torch", "_grouped_mm", "grouped_matmul"),
    ("torch", "ops.aten._softmax_backward_data.default", "attention_backward"),
    (
        "torch",
        "ops.aten._scaled_dot_product_flash_attention_backward.default",
        "attention_backward",
    ),
    (
        "torch",
        "ops.aten._scaled_dot_product_efficient_attention_backward.default",
        "attention_backward",
    ),
    ("torch", "ops.aten._local_scalar_dense.default", "reads_value"),
    ("transformers", "PreTrainedModel._init_weights", "reinitialize"),
    ("transformers", "PreTrainedConfig._attn_implementation", "attention_implementation"),
    ("transformers", "Trainer._get_train_sampler", "trainer_with_sampler"),
    ("peft", "LoraConfig._register_custom_module", "register_adapter_classes"),
    (
        "peft.tuners.lora.layer",
        "ParamWrapper._activate_lora",
        "fold_experts_without_autocast",
    ),
    (
        "peft.tuners.lora.layer",
        "ParamWrapper._remove_parametrizations",
        "fold_experts_without_autocast",
    ),
    ("peft.tuners.tuners_utils", "_maybe_include_all_linear_layers", "expand_all_linear"),
]


@pytest.mark.parametrize(("module", "name", "function"), PRIVATE_NAMES)
def test_private_name_still_exists(module: str, name: str, function: str) -> None:
    try:
        owner = importlib.import_module(module)
        for part in name.split("."):
            owner = getattr(owner, part)
    except (ImportError, AttributeError):
        library = module.partition(".")[0]
        version = importlib.import_module(library).__version__
        pytest.fail(
            f"{library} {version} no longer has {module}.{name}: "
            f"rankwise.models.compat.{function} needs another way"
        )


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    )


def test_operators_are_intercepted_inside_the_with_block_only() -> None:
    seen = []

    def run(operator: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]) -> object:
        seen.append(str(operator))
        return operator(*args, **kwargs)  # type: ignore[operator]

    with intercept_operators(run):
        total = torch.ones(2) + 1
    torch.ones(2) * 2
    assert total.tolist() == [2.0, 2.0]
    assert seen == ["aten.ones.default", "aten.add.Tensor"]


def test_attention_kernels_agree_with_the_public_function() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    call = AttentionCall(query, key, value, mask=None, dropout=0.0, is_causal=True)
    by_math = math_attention(call)
    fused = cpu_attention(call)
    torch.testing.assert_close(by_math, expected)
    torch.testing.assert_close(fused, expected)
    assert cpu_fuses_attention(call)
    assert not cpu_fuses_attention(call._replace(dropout=0.1))


def test_softmax_of_fp16_is_taken_in_fp32() -> None:
    x = torch.randn(3, 5, device="meta", dtype=torch.float16)
    assert softmax_to_fp32(x, 1).dtype is torch.float32


def test_backward_of_softmax_and_attention_runs_the_named_operators() -> None:
    seen = set()

    def run(operator: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]) -> object:
        seen.add(operator)
        return operator(*args, **kwargs)  # type: ignore[operator]

    x = torch.randn(3, 5, requires_grad=True)
    with intercept_operators(run):
        x.softmax(dim=1).sum().backward()
    of_softmax, of_flash, of_efficient = attention_backward()
    assert of_softmax in seen
    assert "flash" in str(of_flash)
    assert "efficient" in str(of_efficient)


def test_reading_a_value_is_recognised() -> None:
    seen = []

    def run(operator: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]) -> object:
        seen.append(reads_value(operator))
        return operator(*args, **kwargs)  # type: ignore[operator]

    x = torch.ones(1)
    with intercept_operators(run):
        x + 1
        x.item()
    assert seen == [False, True]


def test_grouped_matmul_is_what_a_function_mode_sees() -> None:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    rows = torch.zeros(4, 16, dtype=torch.bfloat16, device="meta")
    weight = torch.zeros(2, 16, 16, dtype=torch.bfloat16, device="meta")
    ends = torch.zeros(2, dtype=torch.int32, device="meta")
    with Mode():
        functional.grouped_mm(rows, weight, offs=ends)
    assert seen == [grouped_matmul()]


def test_a_registered_class_wraps_its_layers() -> None:
    from peft import get_peft_model
    from peft.tuners.lora.layer import Linear

    class Wide(nn.Linear):
        pass

    class WideLora(Linear):
        pass

    model = nn.Sequential(Wide(4, 4), nn.Linear(4, 4))
    config = LoraConfig(target_modules=["0", "1"])
    register_adapter_classes(config, {Wide: WideLora})
    get_peft_model(model, config)
    assert [type(layer) for layer in model] == [WideLora, Linear]


class Experts(nn.Module):
    """Two linear experts in one stacked parameter (experts, d_in, d_out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x, self.weight)


def test_experts_are_folded_on_meta_and_give_the_same_as_peft_elsewhere() -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(Experts()),
        LoraConfig(target_modules=[], target_parameters=["0.weight"], init_lora_weights=False),
    )
    x = torch.randn(2, 5, 4)
    expected = model(x)
    fold_experts_without_autocast(model)
    assert torch.equal(model(x), expected)
    assert model.to("meta")(x.to("meta")).shape == expected.shape


def test_tensors_are_found_at_any_depth() -> None:
    first, second = torch.ones(1), torch.ones(2)
    found = tensors_in({"a": [first, 3], "b": (None, {"c": second})})
    assert [id(tensor) for tensor in found] == [id(first), id(second)]


def test_reinitialize_draws_as_a_new_model_does() -> None:
    model = tiny_bert()
    nn.init.ones_(model.classifier.weight)
    nn.init.ones_(model.classifier.bias)
    for parameter in model.classifier.parameters():
        parameter._is_hf_initialized = True  # as loading marks it
    torch.manual_seed(3)
    reinitialize(model, model.classifier)
    torch.manual_seed(3)
    expected = torch.empty(2, 8).normal_(0.0, model.config.initializer_range)
    assert torch.equal(model.classifier.weight, expected)
    assert model.classifier.bias.tolist() == [0.0, 0.0]


def test_every_part_gets_the_attention_and_gets_its_own_back() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = tiny_bert(), tiny_bert()

    model = Pair()
    model.second.config._attn_implementation = "eager"
    with pytest.raises(KeyError), attention_implementation(model, "some_attention"):
        inside = [part.config._attn_implementation for part in (model.first, model.second)]
        raise KeyError
    after = [part.config._attn_implementation for part in (model.first, model.second)]
    assert inside == ["some_attention"] * 2
    assert after == ["sdpa", "eager"]


def test_the_trainer_sees_examples_in_the_order_of_the_sampler(tmp_path: Path) -> None:
    seen: list[int] = []

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        seen.extend(rows)
        return {
            "input_ids": torch.tensor([[row] for row in rows]),
            "labels": torch.zeros(len(rows), dtype=torch.long),
        }

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    trainer = trainer_with_sampler(
        Trainer,
        [3, 0, 2, 1],
        model=tiny_bert(),
        args=arguments,
        train_dataset=[0, 1, 2, 3],
        data_collator=collate,
    )
    trainer.train()
    assert seen == [3, 0, 2, 1]


def test_one_of_several_gpus_is_used(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4)
    arguments._n_gpu = 3  # as on a machine with three
    assert arguments.train_batch_size == 12
    use_at_most_one_gpu(arguments)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 4)


def test_all_linear_becomes_every_linear_layer_but_the_head() -> None:
    model = tiny_bert()
    config = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear")
    expand_all_linear(config, model)
    matched = {
        name
        for name, module in model.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in config.target_modules)
    }
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert matched == linear - {"classifier"}


def quantize(kind: str) -> tuple[Any, torch.Tensor]:
    """Return a quantised layer and the weight that it was made from, (32, 64)."""
    torch.manual_seed(0)
    source = nn.Linear(64, 32, bias=False)
    layer: Any
    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(
            64, 32, bias=False, quant_type="nf4", compress_statistics=kind == "nf4-dq"
        )
    layer.load_state_dict(source.state_dict())
    return layer.to("cpu"), source.weight.detach()


@pytest.mark.parametrize(("kind", "bits", "error"), [("nf4", 4, 0.02), ("int8", 8, 0.001)])
def test_a_quantised_layer_is_recognised_and_gives_its_weight_back(
    kind: str, bits: int, error: float
) -> None:
    layer, weight = quantize(kind)
    assert quantized_bits(layer) == bits
    assert quantized_bits(nn.Linear(2, 2)) is None
    fix_bnb_layout(layer)
    assert dequantize_bnb(layer).shape == (32, 64)
    assert (dequantize_bnb(layer).float() - weight).abs().max() < error


def test_an_adapter_around_a_quantised_layer_is_not_quantised_itself() -> None:
    model = nn.Sequential(quantize("nf4")[0])
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # as from_pretrained marks it
    adapted = get_peft_model(model, LoraConfig(target_modules=["0"]))  # type: ignore[arg-type]
    layer = adapted.base_model.model[0]
    assert type(layer).__name__ == "Linear4bit"
    assert quantized_bits(layer) is None
    assert quantized_bits(layer.base_layer) == 4


@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "int8"])
def test_no_forward_pass_changes_a_layer_whose_layout_is_fixed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes rearranges 4-bit weights on a CPU with AVX512-BF16 unless it is told not to."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    layer, _ = quantize(kind)
    fix_bnb_layout(layer)
    before = [tensor.clone() for tensor in (layer.weight.data, *quantized_tensors(layer))]
    with torch.no_grad():
        layer.eval()(torch.ones(1, 64))
    after = [layer.weight.data, *quantized_tensors(layer)]
    assert len(before) == len(after)
    assert all(map(torch.equal, before, after))


def test_the_scales_of_double_quantisation_are_found() -> None:
    plain, nested = (
        sum(tensor.numel() for tensor in quantized_tensors(quantize(kind)[0]))
        for kind in ("nf4", "nf4-dq")
    )
    # 32 blocks of 64 weights in a block of scales: their scale, the offset, a table of 256 codes.
    assert nested - plain == 1 + 1 + 256


@pytest.mark.parametrize("before", [None, pytest.param("0", marks=pytest.mark.slow)])
def test_pytorchs_compiler_is_not_loaded_with_bitsandbytes(before: str | None) -> None:
    code = """
import os, sys
from rankwise.models.compat import importing
with importing():
    import bitsandbytes
print("torch._inductor.compile_fx" in sys.modules, os.environ.get("TORCHDYNAMO_DISABLE"))
"""
    environment = {key: text for key, text in os.environ.items() if key != "TORCHDYNAMO_DISABLE"}
    if before is not None:
        environment["TORCHDYNAMO_DISABLE"] = before
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"False {before}\n"


def test_libraries_are_quiet_inside_and_as_before_outside() -> None:
    transformers_logging.set_verbosity(logging.INFO)
    try:
        with quiet_libraries():
            assert transformers_logging.get_verbosity() == logging.CRITICAL
            assert not transformers_logging.is_progress_bar_enabled()
            with warnings.catch_warnings(record=True) as caught:
                warnings.warn("noise", stacklevel=1)
            assert not caught
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()
