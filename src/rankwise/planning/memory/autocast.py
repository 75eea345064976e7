"""The casts of ``torch.autocast``, for tensors on ``meta``, which PyTorch's own leaves as they are.

Sources: PyTorch's "Autocast Op Reference" (``torch.amp``), ``ATen/autocast_mode.h`` for the lists
of CUDA and the cache of casts, and ``ATen/autocast_mode.cpp`` for the lists of the CPU.
"""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.models.compat import tensors_in


class CastRules(NamedTuple):
    """Names of functions by their rule; other functions take their arguments as they are."""

    lower: frozenset[str]  # all arguments in the lower precision
    single: frozenset[str]  # all arguments in fp32
    single_result: frozenset[str]  # the result in fp32, unless the call names a precision
    widest: frozenset[str]  # all arguments in the widest precision among them


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


MATMULS = _names(
    "matmul rmatmul mm bmm addmm addbmm baddbmm linear linalg_vecdot einsum prelu",
    "conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d",
    "scaled_dot_product_attention",
)
LOSSES = _names(
    "cross_entropy nll_loss binary_cross_entropy_with_logits kl_div mse_loss l1_loss",
    "smooth_l1_loss huber_loss poisson_nll_loss cosine_embedding_loss hinge_embedding_loss",
    "margin_ranking_loss multi_margin_loss multilabel_margin_loss soft_margin_loss",
    "triplet_margin_loss",
)
CUDA_RULES = CastRules(
    lower=MATMULS | _names("mv addmv addr chain_matmul linalg_multi_dot"),
    single=LOSSES
    | _names(
        "acos asin cosh erfinv exp expm1 log log10 log2 log1p pow rsqrt sinh tan softplus",
        "reciprocal logsumexp dist pdist cdist",
        "layer_norm rms_norm group_norm renorm cosine_similarity",
        "rpow square rdiv rtruediv normalize interpolate",  # made of listed ones
    ),
    single_result=_names(
        "softmax log_softmax sum prod cumsum cumprod",
        "norm linalg_norm linalg_vector_norm linalg_matrix_norm",
    ),
    widest=_names(
        "addcdiv addcmul atan2 bilinear cross dot vdot grid_sample index_put tensordot scatter_add"
    ),
)
CPU_RULES = CastRules(
    lower=MATMULS,
    single=LOSSES
    | _names(
        "binary_cross_entropy ctc_loss prod cdist trace quantile nanquantile stft grid_sample",
        "polar avg_pool3d max_pool3d",
    ),
    single_result=frozenset(),
    widest=_names("cat stack index_copy"),
)


class Casts:
    """Casts arguments of functions as autocast does.

    Args:
        dtype: the lower precision.
        on_cpu: take the lists of the CPU instead of CUDA's.

    Attributes:
        kept: casts of trained fp32 parameters by ``id``; autocast keeps them until it ends.
    """

    def __init__(self, dtype: torch.dtype, on_cpu: bool) -> None:
        self.dtype = dtype
        self.device_type = "cpu" if on_cpu else "cuda"
        self.kept: dict[int, Tensor] = {}
        self._rules = CPU_RULES if on_cpu else CUDA_RULES
        self._before: list[bool] = []

    def switch_on(self) -> None:
        """Switch autocast on; models and PEFT ask PyTorch whether it is."""
        self._before.append(torch.is_autocast_enabled(self.device_type))
        torch.set_autocast_enabled(self.device_type, True)

    def switch_back(self) -> None:
        """Undo `switch_on`; the outermost call releases the casts of parameters."""
        torch.set_autocast_enabled(self.device_type, self._before.pop())
        if not self._before:
            self.kept.clear()

    def arguments(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as autocast passes them on to a function of PyTorch."""
        if not torch.is_autocast_enabled(self.device_type):
            return args, kwargs
        name = getattr(function, "__name__", "")
        if name.startswith("__"):
            name = name.strip("_")
        dtype = self._precision(name, args, kwargs)
        if dtype is not None:
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
            return tuple(self._cast(value, dtype) for value in args), kwargs
        if name in self._rules.single_result and _can_cast(args[0]):
            named = [kwargs.get("dtype"), *args]
            if not any(isinstance(value, torch.dtype) for value in named):
                kwargs = {**kwargs, "dtype": torch.float32}
        return args, kwargs

    def _precision(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.dtype | None:
        """Return the precision that a function takes its arguments in; None for any."""
        if name in self._rules.lower:
            return self.dtype
        if name in self._rules.single:
            return torch.float32
        if name in self._rules.widest:
            found = {tensor.dtype for tensor in tensors_in((args, kwargs))}
            return torch.float32 if torch.float32 in found else self.dtype
        return None

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Cast a tensor, or each in a list of them; anything else stays as it is."""
        if isinstance(value, list | tuple) and tensors_in(value):
            return [self._cast(item, dtype) for item in value]
        if not _can_cast(value) or value.dtype is dtype:
            return value
        is_trained_in_single = value.requires_grad and value.dtype is torch.float32
        if not isinstance(value, nn.Parameter) or not is_trained_in_single:
            return value.to(dtype)
        if id(value) not in self.kept:
            self.kept[id(value)] = value.to(dtype)
        return self.kept[id(value)]


def _can_cast(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.is_floating_point() and value.dtype is not torch.float64


def switch_off_inside(model: nn.Module, device_type: str) -> list[RemovableHandle]:
    """Switch autocast off inside the modules that do so themselves; return the hooks.

    Rotary embeddings and routers compute in fp32 that way. transformers' ``maybe_autocast`` does
    nothing on ``meta``.
    """

    def off(*_: Any) -> None:
        torch.set_autocast_enabled(device_type, False)

    def on(*_: Any) -> None:
        torch.set_autocast_enabled(device_type, True)

    hooks = []
    for module in model.modules():
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is not None and "maybe_autocast" in code.co_names:
            hooks.append(module.register_forward_pre_hook(off))
            hooks.append(module.register_forward_hook(on, always_call=True))
    return hooks
