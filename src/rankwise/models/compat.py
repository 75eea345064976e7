"""Private names of torch, transformers, PEFT and bitsandbytes; read it to upgrade one of them.

Each function wraps one private name, and its docstring says why no public one does the work. All of
them were checked on torch 2.13, transformers 5.23, PEFT 0.21 and bitsandbytes 0.50;
tests/models/test_compat.py reports a name that is gone. Libraries are imported inside the
functions, so that this module loads none of them.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor, nn
    from transformers import Trainer, TrainingArguments

# ---- All libraries: their output ----


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' logs, warnings and progress bars inside the ``with`` block."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    shows_bars = transformers_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def importing(*, compiles: bool = False) -> Iterator[None]:
    """Import large libraries in the ``with`` block, without their warnings.

    Args:
        compiles: whether functions that these libraries compile will be used, see `compiler_off`.
    """
    # PEFT imports bitsandbytes, which on some processors recommends another package.
    with nullcontext() if compiles else compiler_off(), quiet_libraries():
        yield


# ---- torch ----


@contextmanager
def compiler_off() -> Iterator[None]:
    """Let ``torch.compile`` return functions as they are, in the ``with`` block.

    PEFT imports bitsandbytes, which compiles functions on import: PyTorch then loads its compiler,
    for more than a second. The parameter ``disable`` of ``torch.compile`` is the importing module's
    alone; ``TORCHDYNAMO_DISABLE`` is PyTorch's own switch, but not in its documentation.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


@contextmanager
def intercept_operators(
    run: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
) -> Iterator[None]:
    """Call ``run(operator, args, kwargs)`` in place of each PyTorch operator in the block.

    `TorchDispatchMode` is documented, but its module has no public name.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Interceptor(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return run(func, args, kwargs or {})

    with Interceptor():
        yield


def tensors_in(value: Any) -> "list[Tensor]":
    """Return the tensors inside nested lists, tuples and dicts.

    ``torch.utils._pytree`` is what autograd and the dispatcher use; it has no public name.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


# ---- torch: attention kernels and other operators, for planning ----


class AttentionCall(NamedTuple):
    """The arguments of ``scaled_dot_product_attention``."""

    query: "Tensor"  # (b, heads, s, d)
    key: "Tensor"  # (b, groups, s, d)
    value: "Tensor"  # (b, groups, s, d)
    mask: "Tensor | None"
    dropout: float
    is_causal: bool
    scale: float | None = None
    enable_gqa: bool = False


def math_attention(call: AttentionCall) -> "Tensor":
    """Attend with PyTorch's unfused kernel. No public function runs a kernel that is not chosen.

    This holds for the next three functions too.
    """
    import torch

    attend = torch.ops.aten._scaled_dot_product_attention_math
    return attend(*call[:6], scale=call.scale, enable_gqa=call.enable_gqa)[0]


def flash_attention(call: AttentionCall) -> "Tensor":
    """Attend with CUDA's FlashAttention kernel."""
    import torch

    attend = torch.ops.aten._scaled_dot_product_flash_attention
    return attend(*call[:3], call.dropout, call.is_causal, False, scale=call.scale)[0]


def efficient_attention(call: AttentionCall) -> "Tensor":
    """Attend with CUDA's memory-efficient kernel."""
    import torch

    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call[:3])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(*call[:4], trains, call.dropout, call.is_causal, scale=call.scale)[0]


def cpu_attention(call: AttentionCall) -> "Tensor":
    """Attend with the CPU's fused kernel."""
    import torch

    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    options = {"attn_mask": call.mask, "scale": call.scale}
    return attend(*call[:3], call.dropout, call.is_causal, **options)[0]


def cpu_fuses_attention(call: AttentionCall) -> bool:
    """Return whether PyTorch takes the CPU's fused kernel for these tensors.

    The public `torch.backends.cuda.can_use_flash_attention` answers for CUDA only.
    """
    import torch

    choice = torch._fused_sdp_choice(*call[:6], scale=call.scale, enable_gqa=call.enable_gqa)
    return choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value


def softmax_to_fp32(x: "Tensor", dim: int) -> "Tensor":
    """Take the softmax of fp16 numbers in fp32, in one kernel. In public, CUDA alone does so."""
    import torch

    return torch.ops.aten._softmax(x, dim, True)


def grouped_matmul() -> Any:
    """Return the function that the public `torch.nn.functional.grouped_mm` calls.

    A torch function mode sees this function only.
    """
    import torch

    return torch._grouped_mm


def attention_backward() -> tuple[Any, Any, Any]:
    """Return the operators that differentiate softmax, flash and memory-efficient attention.

    Operators of autograd have no public names.
    """
    import torch

    aten = torch.ops.aten
    return (
        aten._softmax_backward_data.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
    )


def reads_value(operator: Any) -> bool:
    """Return whether an operator returns a tensor's value to Python, as ``item()`` does.

    PyTorch has no public name for the operator that ``item()`` and ``bool()`` call.
    """
    import torch

    return operator is torch.ops.aten._local_scalar_dense.default


# ---- transformers ----


def reinitialize(model: Any, module: "nn.Module") -> None:
    """Draw the weights of a module again, as its transformers model initialises them.

    The public ``init_weights()`` draws a whole model, and skips parameters that loading marked.
    """
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            parameter._is_hf_initialized = False  # type: ignore[attr-defined]
        model._init_weights(child)


@contextmanager
def attention_implementation(model: "nn.Module", name: str) -> Iterator[None]:
    """Let all parts of a transformers model use a registered attention in the ``with`` block.

    The public ``set_attn_implementation()`` cannot be undone: nothing public returns the old one.
    """
    configs: dict[int, Any] = {
        id(module.config): module.config for module in model.modules() if hasattr(module, "config")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def trainer_with_sampler(kind: "type[Trainer]", sampler: Any, **arguments: Any) -> "Trainer":
    """Return a Trainer of a kind, but with its training examples in the order of a sampler.

    The Trainer takes the name of an order, and no sampler.
    """

    class TrainerWithSampler(kind):  # type: ignore[misc,valid-type]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return sampler

    return TrainerWithSampler(**arguments)


def use_at_most_one_gpu(arguments: "TrainingArguments") -> None:
    """Keep the Trainer from multiplying the batch size by the GPUs; ``n_gpu`` is read-only."""
    arguments._n_gpu = min(1, arguments.n_gpu)


# ---- PEFT ----


def expand_all_linear(config: "LoraConfig", model: "nn.Module") -> None:
    """Replace ``target_modules="all-linear"`` in a PEFT config by the names of linear layers.

    PEFT does this only while it puts the adapter on; no public function returns the names alone.
    """
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    _maybe_include_all_linear_layers(config, model)


def forbidden_targets(model: "nn.Module", names: Iterable[str]) -> list[str]:
    """Return the names of layers that PEFT refuses to adapt in this model, such as Mamba's.

    PEFT checks a layer only while it puts the adapter on. Its kernels for Mamba read the weights of
    ``out_proj`` and pass by an adapter.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    forbidden = []
    for name in names:
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
        except ValueError:
            forbidden.append(name)
    return forbidden


def register_adapter_classes(config: "LoraConfig", classes: dict[type, type]) -> None:
    """Let PEFT use our adapter classes, by layer class; PEFT calls this API experimental."""
    config._register_custom_module(classes)


def fold_experts_without_autocast(peft_model: Any) -> None:
    """Let PEFT's adapters on stacked experts run on the ``meta`` device.

    PEFT folds their factors with autocast switched off, and `torch.autocast` refuses ``meta``.
    """
    from peft.tuners.lora.layer import ParamWrapper
    from torch import autocast, baddbmm, nn
    from torch.nn.utils import parametrize

    class FoldedFactors(nn.Module):
        def __init__(self, left: Any, right: Any, scaling: float) -> None:
            super().__init__()
            self.left, self.right, self.scaling = left, right, scaling

        def forward(self, weight: Any) -> Any:
            with autocast("cuda", enabled=False), autocast("cpu", enabled=False):
                return baddbmm(weight, self.left, self.right, alpha=self.scaling)

    class FoldedWrapper(ParamWrapper):
        @contextmanager
        def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
            if self.num_experts == 1:
                with super()._activate_lora(active_adapters):
                    yield
                return
            (adapter,) = active_adapters
            layer: Any = self.get_base_layer()
            name = self.parameter_name
            trains = self.get_param().requires_grad
            factors = FoldedFactors(*self.get_delta_factors(adapter))
            parametrize.register_parametrization(layer, name, factors)
            layer.parametrizations[name].original.requires_grad_(trains)
            try:
                with parametrize.cached():
                    yield
            finally:
                self._remove_parametrizations()

    for module in peft_model.modules():
        if type(module) is ParamWrapper:
            module.__class__ = FoldedWrapper


# ---- bitsandbytes: attributes of its layers that its documentation does not name ----


def quantized_bits(module: "nn.Module") -> int | None:
    """Return 4 or 8 for a quantised linear layer, None for any other module.

    A comparison by name does not import bitsandbytes. PEFT's adapters have the same class names,
    but another module. Layers that stand for quantised ones in a plan say so themselves.
    """
    kind = type(module)
    if not kind.__module__.startswith("bitsandbytes."):
        return getattr(kind, "planned_bits", None)
    return {"Linear4bit": 4, "Linear8bitLt": 8}.get(kind.__name__)


def fix_bnb_layout(layer: Any) -> None:
    """Bring a quantised layer's weight into its final layout; there is no public setting.

    `rankwise.models.quantization.keep_as_loaded` says why it is needed.
    """
    if quantized_bits(layer) == 4:
        vars(layer)["support_avx512bf16_for_cpu"] = False
    elif layer.weight.CB is not None:
        layer.init_8bit_state()


def dequantize_bnb(layer: Any) -> "Tensor":
    """Return the weight of a quantised layer, (d_out, d_in); 8-bit layers keep their own state."""
    from peft.utils.integrations import dequantize_bnb_weight

    if hasattr(layer, "planned_bits"):
        planned: Tensor = layer.dequantize(layer.dtype)
        return planned
    weight: Tensor = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    return weight


def quantized_tensors(layer: Any) -> "Iterator[Tensor]":
    """Yield a quantised layer's tensors that are not parameters: codes, scales, nested scales."""
    import torch

    quant_state = getattr(layer.weight, "quant_state", None)
    nested_state = getattr(quant_state, "state2", None)
    for holder in (layer.weight, quant_state, getattr(layer, "state", None), nested_state):
        if holder is not None:
            for value in vars(holder).values():
                if isinstance(value, torch.Tensor):
                    yield value
