"""Exact parameter counts: PEFT puts the adapter on a model without weights, and its own parameters are counted."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rankwise.errors import RequestError, nearest, some
from rankwise.lora.adapter import PEFT_PREFIX
from rankwise.lora.alpha import parse_alpha_policy
from rankwise.models.auto import trained_heads
from rankwise.models.compat import first_sentence, quiet_libraries
from rankwise.models.targets import GROUPS, group_pattern
from rankwise.planning.meta_model import MetaModel
from rankwise.planning.repeated_blocks import Stack, cut_stacks

if TYPE_CHECKING:
    from torch import nn

    from rankwise.models.config import Quantization
    from rankwise.planning.config import PlanConfig

PEFT_TASKS = ("CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS")


@dataclass(frozen=True)
class LayerParams:
    """What a layer of the base model trains: its adapter, or itself (``modules_to_save``, ``bias``)."""

    name: str
    params: int


@dataclass(frozen=True)
class ParamCount:
    """The parameters of a model with its adapter, as PEFT counts them.

    Attributes:
        trainable: with the modules trained in full; what ``PeftModel.get_nb_trainable_parameters`` returns.
        all: base model, adapter and the copies of modules trained in full; tied weights once.
        adapter_bytes: size of ``adapter_model.safetensors``.
        layers: the trainable parameters, layer by layer.
    """

    trainable: int
    all: int
    adapter_bytes: int
    layers: tuple[LayerParams, ...]

    @property
    def percent(self) -> float:
        """Trainable parameters per hundred."""
        return 100.0 * self.trainable / self.all


@dataclass
class Skeleton:
    """A model without weights and adapters, its stacks cut to the blocks that stand for all.

    Attributes:
        meta: the cut model.
        stacks: what was cut.
    """

    meta: MetaModel
    stacks: list[Stack]

    def copy(self) -> "nn.Module":
        """Return the cut model for changes."""
        return deepcopy(self.meta.model)

    def repeats(self, name: str) -> int:
        """Return how many layers of the whole model a layer or parameter of the cut one stands for."""
        return len(self.names(name))

    def names(self, name: str) -> list[str]:
        """Return the names, in the whole model, of the layers that a layer of the cut one stands for.

        ``name`` may have anything in front (PEFT's ``base_model.model.``) and behind.
        """
        for stack in self.stacks:
            for kept, represented in zip(stack.middle, stack.represented, strict=True):
                inside = f"{stack.name}.{kept}."
                if (at := f"{name}.".find(inside)) == 0 or (at > 0 and name[at - 1] == "."):
                    front, behind = name[: at + len(stack.name) + 1], name[at + len(inside) - 1 :]
                    return [f"{front}{key}{behind}" for key in represented]
        return [name]


def with_groups_named(config: "PlanConfig", model: "nn.Module") -> "PlanConfig":
    """Return a request whose ``target_modules`` PEFT understands: ``attention`` and ``mlp`` by this model's names."""
    targets = config.target_modules
    return (
        replace(config, target_modules=group_pattern(model, str(targets)))
        if targets in GROUPS
        else config
    )


def as_on_disk(config: "PlanConfig", meta: MetaModel) -> tuple["PlanConfig", list[str]]:
    """Return a request that plans a quantised checkpoint in the bits that loading gives it, and notes about that."""
    written = getattr(meta.config, "quantization_config", None)
    if not isinstance(written, dict):
        return config, []
    method = str(written.get("quant_method", "bitsandbytes"))
    stored: Quantization
    if method == "bitsandbytes" and written.get("load_in_8bit"):
        stored = "int8"
    elif method == "bitsandbytes" and written.get("load_in_4bit"):
        stored = (
            "nf4-dq" if written.get("bnb_4bit_use_double_quant") else "nf4"
        )  # FP4 takes the same
    else:
        planned = (
            "is not quantised" if config.quantization == "none" else f"is {config.quantization}"
        )
        return config, [
            f"the checkpoint is quantised on disk by {method}; the figures are for a base that {planned}"
        ]
    if config.quantization == "none":
        return replace(config, quantization=stored), [
            f"the checkpoint is {stored} on disk, and is planned so"
        ]
    if config.quantization == stored:
        return config, []
    return config, [
        f"the checkpoint is {stored} on disk; the figures are for a base that is {config.quantization}"
    ]


def make_skeleton(meta: MetaModel, config: "PlanConfig") -> Skeleton:
    """Cut a model (in place) as far as the adapter allows: blocks that it treats differently are kept."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    lora = lora_config(config, config.ranks[0], meta.task_type)
    by_name = lora.target_modules != "all-linear"
    patterns = list(lora.rank_pattern)

    def is_like(name: str) -> object:
        leaf_wise = tuple(name.endswith(f".{module}") for module in config.modules_to_save)
        matched = bool(check_target_module_exists(lora, name)) if by_name else None
        return (
            matched,
            next((p for p in patterns if get_pattern_key([p], name) != name or p == name), None),
            leaf_wise,
        )

    return Skeleton(meta, cut_stacks(meta.model, is_like))


def lora_config(config: "PlanConfig", rank: int, task_type: str) -> Any:
    """Return PEFT's config of a request.

    What is trained in full gets no adapter, or PEFT refuses: it takes every name with such an ending, as DistilBERT's
    ``pre_classifier``, but counts them, too, to ``all-linear``.
    """
    from peft import LoraConfig

    targets = config.target_modules
    in_full = "|".join(map(re.escape, (*config.modules_to_save, *trained_heads(task_type))))
    policy = parse_alpha_policy(config.lora_alpha)
    return LoraConfig(
        r=rank,
        lora_alpha=policy.alpha(rank),  # type: ignore[arg-type]  # PEFT takes fractions as well
        use_rslora=policy.use_rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=rf".*({in_full})(\..*)?" if in_full and targets == "all-linear" else None,
        modules_to_save=list(config.modules_to_save) or None,
        rank_pattern=dict(config.rank_pattern),
        bias=config.bias,
        use_dora=config.use_dora,
        task_type=task_type if task_type in PEFT_TASKS else None,
    )


def put_on_adapter(
    model: "nn.Module", config: "PlanConfig", rank: int, task_type: str, more: Any = None
) -> Any:
    """Put an adapter on a model with PEFT.

    Args:
        model: changed in place.
        config: the request.
        rank: r.
        task_type: of the model.
        more: PEFT's custom modules ``{layer class: adapter class}``.

    Returns:
        The ``PeftModel``.

    Raises:
        RequestError: the target modules match nothing, or PEFT refuses.
    """
    import torch
    from peft import get_peft_model

    lora = lora_config(config, rank, task_type)
    if more:
        lora._register_custom_module(more)
    _check_targets(model, config)
    leaves = sorted(_linear_leaves(model))  # as they are before PEFT begins
    try:
        with quiet_libraries(), torch.device("meta"):
            return get_peft_model(model, lora, low_cpu_mem_usage=True)
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        targets = (
            config.target_modules
            if isinstance(config.target_modules, str)
            else ",".join(config.target_modules)
        )
        raise RequestError(
            f"PEFT cannot put an adapter on target_modules {targets!r}: {first_sentence(error)[:200]}; "
            f"the model's linear layers end in: {some(leaves, 12)}"
        ) from None


def _check_targets(model: "nn.Module", config: "PlanConfig") -> None:
    """Refuse names that no layer or parameter ends in, with the nearest one."""
    names = [name for name, _ in model.named_modules()] + [
        name for name, _ in model.named_parameters()
    ]
    leaves = {name.rsplit(".", 1)[-1] for name in names if name}
    old_expert_names = {
        "w1",
        "w2",
        "w3",
        "gate_proj",
        "up_proj",
        "down_proj",
    }  # PEFT maps them to stacked parameters
    given = {
        "target_modules": () if isinstance(config.target_modules, str) else config.target_modules,
        "modules_to_save": config.modules_to_save,
    }
    for setting, wanted in given.items():
        for target in wanted:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                if (
                    setting == "target_modules"
                    and target in old_expert_names
                    and "experts" in leaves
                ):
                    continue
                raise RequestError(
                    f"{setting} {target!r} matches no layer of the model{nearest(target, leaves)}; "
                    f"its linear layers end in: {some(sorted(_linear_leaves(model)), 12)}"
                )


def _linear_leaves(model: "nn.Module") -> set[str]:
    from rankwise.models.targets import linear_sizes

    return {name.rsplit(".", 1)[-1] for name in linear_sizes(model)}


def count_params(skeleton: Skeleton, peft_model: Any) -> ParamCount:
    """Count the parameters of the whole model from its cut one.

    Args:
        skeleton: what was cut.
        peft_model: the cut model with its adapter, not quantised.
    """
    trainable = everything = 0
    layers: dict[str, int] = {}
    for name, parameter in peft_model.named_parameters():  # tied weights come once
        names = skeleton.names(name)
        everything += parameter.numel() * len(names)
        if parameter.requires_grad:
            trainable += parameter.numel() * len(names)
            for whole in names:
                layer = _layer_name(whole)
                layers[layer] = layers.get(layer, 0) + parameter.numel()
    return ParamCount(
        trainable=trainable,
        all=everything,
        adapter_bytes=_file_bytes(_saved_tensors(skeleton, peft_model)),
        layers=tuple(
            LayerParams(name, params) for name, params in sorted(layers.items(), key=_by_numbers)
        ),
    )


def smaller_sides(peft_model: Any) -> dict[str, int]:
    """Return the smaller side of every adapted layer: ``B @ A`` cannot have a higher rank there."""
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix(PEFT_PREFIX): min(module.in_features or 0, module.out_features or 0)
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }


def _layer_name(parameter: str) -> str:
    """Return the base model's layer that a trainable parameter belongs to."""
    name = parameter.removeprefix(PEFT_PREFIX)
    for sign in (".lora_", ".modules_to_save."):
        name = name.split(sign)[0]
    return name.removesuffix(".weight").removesuffix(".bias").replace(".base_layer", "")


def _by_numbers(item: tuple[str, int]) -> list[tuple[int, str]]:
    """Order names with numbers in them as people count: 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split(".")]


def _saved_tensors(skeleton: Skeleton, peft_model: Any) -> Iterator[tuple[str, Any]]:
    from peft import get_peft_model_state_dict

    with quiet_libraries():
        saved = get_peft_model_state_dict(peft_model)
    for name, tensor in saved.items():
        for whole in skeleton.names(name):
            yield whole, tensor


def _file_bytes(tensors: Iterator[tuple[str, Any]]) -> int:
    """Return the size of a safetensors file: 8 bytes of length, a header padded to 8, the data.

    https://huggingface.co/docs/safetensors, "Format". PEFT writes the metadata ``{"format": "pt"}``.
    """
    kinds = {
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "float64": "F64",
        "int64": "I64",
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # The file has wide types first, then names in order (safetensors/src/tensor.rs, ``prepare``).
    for name, tensor in sorted(tensors, key=lambda item: (-item[1].element_size(), item[0])):
        size = tensor.numel() * tensor.element_size()
        kind = kinds[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + offset
