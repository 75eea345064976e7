"""Notes on stacked experts: the weights of a mixture's experts in one parameter, not in layers."""

from collections.abc import Iterator

from rankwise.errors import some
from rankwise.formatting import plain_bytes
from rankwise.models.device import DTYPES
from rankwise.planning.config import PlanConfig
from rankwise.planning.params import ParamCount, stacked_experts
from rankwise.planning.repeated_blocks import Skeleton


def expert_notes(skeleton: Skeleton, config: PlanConfig, params: ParamCount) -> Iterator[str]:
    """Note what adapters and quantisation do not reach in a mixture of experts.

    Args:
        skeleton: the shortened model.
        config: the request.
        params: parameters at any rank.
    """
    experts = stacked_experts(skeleton.meta.model)
    if not experts:
        return
    names = some(dict.fromkeys(map(_ending, experts)))
    modules = {name.rpartition(".")[0] for name in experts}
    if not any(layer.startswith(tuple(modules)) for layer in params.layers):
        yield (
            f"the experts get no adapter: they are stacked in parameters ({names}), which "
            "target_modules does not reach; PEFT has target_parameters for them, which rankwise "
            "does not plan"
        )
    if config.engine == "fused":
        return  # what follows is about PEFT's own preparation
    numbers = sum(size * skeleton.repeats(name) for name, size in experts.items())
    half = "" if config.precision == "fp32" else f", instead of {config.precision}"
    needs = plain_bytes(4 * numbers)
    if half:
        half += f" ({plain_bytes(DTYPES[config.precision].itemsize * numbers)})"
    yield (
        f"int8 and NF4 do not shrink the experts: bitsandbytes quantises nn.Linear, and they are "
        f"stacked in parameters ({names}); prepare_model_for_kbit_training turns these to fp32 "
        f"({needs}){half}. Train without quantisation, or freeze the model by "
        "model.requires_grad_(False) in place of that function"
    )


def _ending(name: str) -> str:
    """Return the part of a parameter's name after the number of its block."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts)
