"""A request made ready for planning: its model without weights, shortened, and what differs."""

from dataclasses import dataclass, replace

from rankwise.checks import check_matching_ends
from rankwise.errors import reading, some
from rankwise.lora.adapter import ENDING
from rankwise.models.config import Quantization
from rankwise.models.device import DTYPES
from rankwise.models.targets import (
    ALL_LINEAR,
    GROUPS,
    group_pattern,
    part_pattern,
    without_adapter,
)
from rankwise.planning.config import PlanConfig
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
    with reading(f"model {config.model!r} cannot be planned"):
        on_disk, notes = _quantized_as_on_disk(config, meta)
        named, target_notes = _with_targets(on_disk, meta)
        if on_disk.target_modules is None:
            on_disk = named
        skeleton = make_skeleton(meta, named)
    return PreparedRequest(skeleton, named, on_disk, [*meta.notes, *notes, *target_notes])


def _with_targets(config: PlanConfig, meta: MetaModel) -> tuple[PlanConfig, list[str]]:
    """Return the request with targets as PEFT takes them, and notes on what they leave out."""
    notes = []
    targets = config.target_modules
    if targets is None:
        targets = ALL_LINEAR
        if part := meta.language_model:
            targets = part_pattern(meta.model, part)
            notes.append(
                f"the adapter is on the linear layers of {part}, and the rest of the model is "
                f"frozen; --target-modules {ALL_LINEAR} plans for all"
            )
    elif targets in GROUPS:
        targets = group_pattern(meta.model, str(targets))
    if targets != config.target_modules or targets == ALL_LINEAR:
        for reason, names in _by_reason(without_adapter(meta.model)).items():
            notes.append(f"no adapter on {some(names)} of {meta.config.model_type}: {reason}")
    if any("mamba" in name.split(".") for name, _ in meta.model.named_modules()) or any(
        "Mamba" in type(module).__name__ for module in meta.model.modules()
    ):
        notes.append(
            "Mamba's layers are traced as PyTorch runs them; the kernels of mamba-ssm and "
            "causal-conv1d take less memory"
        )
    if meta.task_type == "IMAGE_TEXT_TO_TEXT":
        notes.append(
            "the batch is text: add the tokens of an image to --seq-len; memory of the vision "
            "tower's own activations is not in the figures"
        )
    return replace(config, target_modules=targets), notes


def _by_reason(reasons: dict[str, str]) -> dict[str, list[str]]:
    """Return ``{reason: last parts of the names of its layers}``."""
    grouped: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        leaf = name.rpartition(".")[2]
        members = grouped.setdefault(reason, [])
        if leaf not in members:
            members.append(leaf)
    return grouped


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

    lora = lora_config(config, config.ranks[0], meta.task_type, meta.model)
    targets_are_named = lora.target_modules != "all-linear"
    names = [name for name, _ in meta.model.named_modules()]
    if isinstance(lora.target_modules, str):
        check_matching_ends("target_modules", [lora.target_modules], names)
    check_matching_ends("rank_pattern", map(ENDING.format, lora.rank_pattern), names)

    def has_rank_of(pattern: str, name: str) -> bool:
        return get_pattern_key([pattern], name) != name or pattern == name

    def treatment(name: str) -> object:
        in_full = tuple(name.endswith(f".{module}") for module in config.modules_to_save)
        is_target = bool(check_target_module_exists(lora, name)) if targets_are_named else None
        ranks = [pattern for pattern in lora.rank_pattern if has_rank_of(pattern, name)]
        return is_target, ranks[:1], in_full

    return Skeleton(meta, shorten_stacks(meta.model, treatment))
