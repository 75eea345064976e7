"""Exact parameter counts: PEFT puts the adapter on a model without weights, and we count."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankwise.errors import RequestError, nearest, reading, shown, some
from rankwise.lora.adapter import PEFT_PREFIX, natural_order
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.models import compat
from rankwise.models.auto import trained_heads
from rankwise.models.targets import linear_sizes, without_adapter
from rankwise.planning.config import PlanConfig
from rankwise.planning.repeated_blocks import Skeleton

SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
}
PEFT_TASKS = ("CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS")
MIXTRAL_NAMES = {"w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"}
"""Names of single experts' matrices, which PEFT maps to stacked parameters."""


@dataclass(frozen=True)
class ParamCount:
    """The parameters of a model with its adapter, as PEFT counts them.

    Attributes:
        trainable: adapter and modules trained in full, as
            ``PeftModel.get_nb_trainable_parameters`` counts them.
        all: base model, adapter and the copies of modules trained in full; tied weights once.
        adapter_bytes: size of ``adapter_model.safetensors``.
        layers: the trainable parameters by layer: of its adapter, or all if it is trained in full.
        smaller_sides: the smaller side of each adapted layer, the highest rank of its ``B @ A``;
            by name in the skeleton.
    """

    trainable: int
    all: int
    adapter_bytes: int
    layers: dict[str, int]
    smaller_sides: dict[str, int]

    @property
    def percent(self) -> float:
        """Trainable parameters per hundred."""
        return 100.0 * self.trainable / self.all


def count_params(skeleton: Skeleton, peft_model: Any) -> ParamCount:
    """Count the parameters of the whole model from a copy of its skeleton with the adapter."""
    total = 0
    layers: Counter[str] = Counter()
    for name, parameter in peft_model.named_parameters():  # tied weights come once
        names = skeleton.names(name)
        total += parameter.numel() * len(names)
        if parameter.requires_grad:
            for full_name in names:
                layers[_layer_name(full_name)] += parameter.numel()
    return ParamCount(
        trainable=layers.total(),
        all=total,
        adapter_bytes=_adapter_bytes(skeleton, peft_model),
        layers={name: layers[name] for name in sorted(layers, key=natural_order)},
        smaller_sides=_smaller_sides(peft_model),
    )


def count_at_rank(skeleton: Skeleton, config: PlanConfig, rank: int) -> ParamCount:
    """Put a request's adapter on a copy of the skeleton and count.

    Raises:
        RequestError: the target modules match nothing, or PEFT refuses.
    """
    peft_model = make_peft_model(skeleton.copy(), config, rank, skeleton.meta.task_type)
    return count_params(skeleton, peft_model)


def lora_config(config: PlanConfig, rank: int, task_type: str, model: nn.Module) -> Any:
    """Return PEFT's config for a request.

    PEFT counts modules trained in full, such as DistilBERT's ``pre_classifier``, to ``all-linear``
    and then refuses an adapter there. So they are excluded, and so is what it always refuses.
    """
    from peft import LoraConfig

    targets = config.targets
    policy = parse_alpha_policy(config.lora_alpha)
    forbidden = sorted(leaves(without_adapter(model)))
    left_out = (*config.modules_to_save, *trained_heads(task_type), *forbidden)
    names = "|".join(map(re.escape, left_out))
    excluded = rf".*({names})(\..*)?" if names and targets == "all-linear" else None
    return LoraConfig(
        r=rank,
        lora_alpha=policy.alpha(rank),  # type: ignore[arg-type]  # PEFT takes fractions as well
        use_rslora=policy.use_rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=excluded,
        modules_to_save=list(config.modules_to_save) or None,
        rank_pattern=dict(config.rank_pattern),
        bias=config.bias,
        use_dora=config.use_dora,
        lora_dropout=config.lora_dropout,
        task_type=task_type if task_type in PEFT_TASKS else None,
    )


def make_peft_model(
    model: nn.Module,
    config: PlanConfig,
    rank: int,
    task_type: str,
    adapter_classes: dict[type, type] | None = None,
) -> Any:
    """Put an adapter on a model on ``meta``, in place, and return the ``PeftModel``.

    Args:
        model: the model.
        config: the request.
        rank: r.
        task_type: PEFT's task type.
        adapter_classes: adapter class by layer class, for layers that PEFT does not know.

    Raises:
        RequestError: the target modules match nothing, or PEFT refuses.
    """
    from peft import get_peft_model

    lora = lora_config(config, rank, task_type, model)
    if adapter_classes:
        compat.register_adapter_classes(lora, adapter_classes)
    _check_names(model, config)
    linear = sorted(leaves(linear_sizes(model)))  # before PEFT wraps them
    targets = config.targets if isinstance(config.targets, str) else ",".join(config.targets)
    failure = (
        f"PEFT cannot put an adapter on target_modules {shown(targets)} (the linear layers end in: "
        f"{some(linear, 12)})"
    )
    with reading(failure), compat.quiet_libraries(), torch.device("meta"):
        peft_model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    _check_reached(peft_model, config)
    compat.fold_experts_without_autocast(peft_model)
    return peft_model


def _check_reached(peft_model: Any, config: PlanConfig) -> None:
    """Refuse names that no adapter came of, which PEFT passes over if others match."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    layers = [(f".{name}", each) for name, each in peft_model.named_modules()]
    adapted = [(name, each) for name, each in layers if isinstance(each, LoraLayer)]
    if isinstance(config.targets, str) or any(isinstance(e, ParamWrapper) for _, e in adapted):
        return  # PEFT maps names of single experts' matrices to stacked parameters
    reached: list[str] = []
    missed: list[str] = []
    for target in config.targets:
        found = any(name.endswith(f".{target}") for name, _ in adapted)
        (reached if found else missed).append(target)
    if missed:
        stacked = stacked_experts(peft_model)
        names = some(sorted(leaves(stacked)))
        why = f": its experts are stacked in parameters ({names})" if stacked else ""
        targets = ",".join(reached) or "all-linear"
        raise RequestError(
            f"target_modules {', '.join(map(repr, missed))}: no linear layer of the model has "
            f"this name{why}; what works is --target-modules {targets}"
        )


def stacked_experts(model: nn.Module) -> dict[str, int]:
    """Return ``{name: number of entries}`` of the parameters that hold several experts' weights."""
    sizes = {}
    for name, module in model.named_modules():
        if "expert" in f"{name} {type(module).__name__}".lower():
            for leaf, parameter in module.named_parameters(prefix=name, recurse=False):
                if parameter.ndim == 3 and ".lora_" not in leaf:
                    sizes[leaf] = parameter.numel()
    return sizes


def _check_names(model: nn.Module, config: PlanConfig) -> None:
    """Refuse names that no layer or parameter ends in, with the nearest one that exists."""
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters()) if name]
    known = leaves(names)
    targets = () if isinstance(config.targets, str) else config.targets
    requested = [("target_modules", target) for target in targets]
    requested += [("modules_to_save", module) for module in config.modules_to_save]
    for setting, wanted in requested:
        is_folded = setting == "target_modules" and "experts" in known and wanted in MIXTRAL_NAMES
        if not is_folded and not any(f".{name}".endswith(f".{wanted}") for name in names):
            linear = sorted(leaves(linear_sizes(model)))
            raise RequestError(
                f"{setting} {wanted!r} matches no layer of the model{nearest(wanted, known)}; "
                f"its linear layers end in: {some(linear, 12)}"
            )


def leaves(names: Iterable[str]) -> set[str]:
    """Return the last parts of dotted names."""
    return {name.rsplit(".", 1)[-1] for name in names}


def _smaller_sides(peft_model: Any) -> dict[str, int]:
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix(PEFT_PREFIX): min(module.in_features or 0, module.out_features or 0)
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }


def _layer_name(parameter: str) -> str:
    """Return the base model's layer that a trainable parameter belongs to."""
    name = re.split(r"\.lora_|\.modules_to_save\.", parameter.removeprefix(PEFT_PREFIX))[0]
    return name.removesuffix(".weight").removesuffix(".bias").replace(".base_layer", "")


def _adapter_bytes(skeleton: Skeleton, peft_model: Any) -> int:
    """Return the size of a safetensors file: 8 bytes of length, a header padded to 8, the data.

    https://huggingface.co/docs/safetensors, "Format"; PEFT writes ``{"format": "pt"}``.
    """
    from peft import get_peft_model_state_dict

    with compat.quiet_libraries():
        saved = get_peft_model_state_dict(peft_model)
    tensors = [(full, tensor) for name, tensor in saved.items() for full in skeleton.names(name)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # The file has wide types first, then sorted names (safetensors/src/tensor.rs, ``prepare``).
    for name, tensor in sorted(tensors, key=lambda item: (-item[1].element_size(), item[0])):
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + offset
