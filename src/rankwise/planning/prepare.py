"""A request made ready for planning: its model without weights, shortened, and what differs."""

from dataclasses import dataclass, replace

from rankwise.models.config import Quantization
from rankwise.models.targets import GROUPS, group_pattern
from rankwise.planning.config import PlanConfig
from rankwise.planning.memory.setup import DTYPES
from rankwise.planning.meta_model import MetaModel, load_meta_model
from rankwise.planning.params import lora_config
from rankwise.planning.repeated_blocks import Skeleton, shorten_stacks


@dataclass(frozen=True)
class PreparedRequest:
    """A request and its model, made ready for planning.

    Attributes:
        skeleton: the shortened model.
        config: `on_disk`, in terms that PEFT understands.
        on_disk: the request with the quantisation of the checkpoint.
        notes: differences between plan and request.
    """

    skeleton: Skeleton
    config: PlanConfig
    on_disk: PlanConfig
    notes: list[str]


def prepare(config: PlanConfig) -> PreparedRequest:
    """Load a request's model without weights and shorten it.

    Raises:
        RequestError: there is no such model, or it cannot be built.
    """
    meta = load_meta_model(
        config.model,
        DTYPES[config.precision],
        task_type=config.task_type,
        attention="eager" if config.attention == "eager" else "sdpa",
        num_labels=config.num_labels,
        trust_remote_code=config.trust_remote_code,
    )
    on_disk, notes = _quantized_as_on_disk(config, meta)
    named = on_disk
    if on_disk.target_modules in GROUPS:
        pattern = group_pattern(meta.model, str(on_disk.target_modules))
        named = replace(on_disk, target_modules=pattern)
    return PreparedRequest(make_skeleton(meta, named), named, on_disk, [*meta.notes, *notes])


def _quantized_as_on_disk(config: PlanConfig, meta: MetaModel) -> tuple[PlanConfig, list[str]]:
    """Return the request with the quantisation that loading the checkpoint gives, and notes."""
    quantization = getattr(meta.config, "quantization_config", None)
    if not isinstance(quantization, dict):
        return config, []
    method = str(quantization.get("quant_method", "bitsandbytes"))
    stored: Quantization = "none"
    if method == "bitsandbytes" and quantization.get("load_in_8bit"):
        stored = "int8"
    elif method == "bitsandbytes" and quantization.get("load_in_4bit"):
        # FP4 takes the same memory as NF4.
        stored = "nf4-dq" if quantization.get("bnb_4bit_use_double_quant") else "nf4"
    if config.quantization == "none" and stored != "none":
        note = f"the checkpoint is {stored} on disk, and is planned so"
        return replace(config, quantization=stored), [note]
    if config.quantization == stored != "none":
        return config, []
    on_disk = f"quantised on disk by {method}" if stored == "none" else f"{stored} on disk"
    planned = "not quantised" if config.quantization == "none" else config.quantization
    return config, [f"the checkpoint is {on_disk}; the figures are for a base that is {planned}"]


def make_skeleton(meta: MetaModel, config: PlanConfig) -> Skeleton:
    """Shorten a model, in place, but keep all blocks that the adapter treats differently."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    lora = lora_config(config, config.ranks[0], meta.task_type)
    targets_are_named = lora.target_modules != "all-linear"

    def has_rank_of(pattern: str, name: str) -> bool:
        return get_pattern_key([pattern], name) != name or pattern == name

    def treatment(name: str) -> object:
        in_full = tuple(name.endswith(f".{module}") for module in config.modules_to_save)
        is_target = bool(check_target_module_exists(lora, name)) if targets_are_named else None
        ranks = [pattern for pattern in lora.rank_pattern if has_rank_of(pattern, name)]
        return is_target, ranks[:1], in_full

    return Skeleton(meta, shorten_stacks(meta.model, treatment))
