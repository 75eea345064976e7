"""Parameters and memory of every rank before any weight is loaded: the Python call behind ``rankwise plan``."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rankwise.checks import check_config
from rankwise.errors import RequestError
from rankwise.models.config import Quantization
from rankwise.planning.beside import beside
from rankwise.planning.config import PlanConfig, make_plan_config
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.setup import DTYPES, longest_input
from rankwise.planning.memory.step import StepMemory
from rankwise.planning.meta_model import load_meta_model
from rankwise.planning.params import (
    ParamCount,
    as_on_disk,
    count_params,
    make_skeleton,
    put_on_adapter,
    smaller_sides,
    with_groups_named,
)
from rankwise.planning.planner import (
    Limits,
    Planner,
    Saving,
    chosen_device,
    find_limits,
    find_savings,
)

COMPARED: tuple[Quantization, ...] = ("none", "int8", "nf4")


@dataclass(frozen=True)
class PlanRow:
    """A rank.

    Attributes:
        rank: r.
        params: counts, exact.
        memory: of a training step.
        fits: whether the device has room for it; None without a device.
        margin: bytes left on the device, negative if it does not fit; None without a device.
    """

    rank: int
    params: ParamCount
    memory: StepMemory
    fits: bool | None
    margin: int | None


@dataclass(frozen=True)
class Plan:
    """What was planned.

    Attributes:
        config: the request.
        task_type: that was planned for.
        device: whose kernels were planned for.
        room: bytes on it; None if the request names no device and no memory.
        rows: rank by rank.
        by_quantization: bytes of the training peak by quantisation and rank: the same ranks at the request's
            precision, int8 and NF4.
        limits: the most that fits; None without a device.
        savings: what to change first, where the smallest rank does not fit.
        notes: where the plan differs from what was asked for.
    """

    config: PlanConfig
    task_type: str
    device: Device
    room: int | None
    rows: tuple[PlanRow, ...]
    by_quantization: dict[str, dict[int, int]]
    limits: Limits | None
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; sizes in bytes."""
        return {
            "model": self.config.model,
            "request": self.config.as_dict(),
            "task_type": self.task_type,
            "device": self.device.name,
            "device_bytes": self.room,
            "ranks": [
                {
                    "rank": row.rank,
                    "trainable_params": row.params.trainable,
                    "all_params": row.params.all,
                    "trainable_percent": row.params.percent,
                    "adapter_bytes": row.params.adapter_bytes,
                    "memory": row.memory.as_dict(),
                    "at_peak": row.memory.at_peak,
                    "fits": row.fits,
                    "margin": row.margin,
                    "layers": {layer.name: layer.params for layer in row.params.layers},
                }
                for row in self.rows
            ],
            "by_quantization": [
                {"quantization": name, "rank": rank, "peak_allocated": peak}
                for name, peaks in self.by_quantization.items()
                for rank, peak in peaks.items()
            ],
            "limits": None if self.limits is None else asdict(self.limits),
            "savings": [asdict(saving) for saving in self.savings],
            "notes": list(self.notes),
        }

    def as_json(self) -> str:
        """Return `as_dict` as one JSON document."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)


def plan(model: str | None = None, *, config: PlanConfig | None = None, **settings: Any) -> Plan:
    """Tell parameters and memory of every rank from the model's config alone.

    Args:
        model: a directory with ``config.json``, or a hub id.
        config: the whole request; or give its fields as keyword arguments.
        **settings: fields of `PlanConfig`, for example ``ranks=[4, 8]``, ``quantization="nf4"``, ``device="T4"``.

    Returns:
        The plan.

    Raises:
        RequestError: the request was wrong.

    Example:
        >>> import rankwise
        >>> rankwise.plan("path/to/Llama-2-7b", ranks=[8], target_modules="q_proj,v_proj")  # doctest: +SKIP
    """
    if config is not None and (settings or model is not None):
        raise RequestError("give either a config or its fields, not both")
    if config is None:
        config = make_plan_config({**settings, **({} if model is None else {"model": model})})
    config = check_config(config, PlanConfig)
    device, room = chosen_device(config)
    meta = load_meta_model(
        config.model,
        DTYPES[config.precision],
        task_type=config.task_type,
        attention="eager" if config.attention == "eager" else "sdpa",
        num_labels=config.num_labels,
        trust_remote_code=config.trust_remote_code,
    )
    longest = 0 if meta.task_type == "IMAGE_CLS" else longest_input(meta.model)
    request, on_disk = as_on_disk(config, meta)
    config = with_groups_named(request, meta.model)
    skeleton = make_skeleton(meta, config)
    notes = [*meta.notes, *on_disk]
    planner = Planner(skeleton, config, device)
    others = beside(
        lambda: _peaks(planner, [name for name in COMPARED if name != config.quantization])
    )
    counts = {}
    for rank in config.ranks:
        peft_model = put_on_adapter(skeleton.copy(), config, rank, meta.task_type)
        counts[rank] = count_params(skeleton, peft_model)
        sides = smaller_sides(peft_model)
        small = {name: side for name, side in sides.items() if side < rank}
        if small:
            name = min(small, key=small.__getitem__)
            notes.append(
                f"rank {rank} is above {small[name]}, the smaller side of {name}, and adds nothing there"
            )
    rows = []
    for rank, memory in planner.by_rank(config.ranks).items():
        margin = None if room is None else room - memory.needed
        rows.append(
            PlanRow(rank, counts[rank], memory, None if margin is None else margin >= 0, margin)
        )
    if "math" in planner.kernels:
        notes.append(
            "PyTorch has no fused attention kernel for this model, precision and device, and keeps the scores "
            "(grouped keys in fp32, or before capability 8.0); --attention flash plans for one, with repeated keys"
        )
    limits, savings = None, list[Saving]()
    if room is not None:
        free = room

        def find() -> dict[str, Any]:
            return {
                "savings": [
                    asdict(saving) for saving in find_savings(planner, free, config.ranks[0])
                ]
            }

        found = None if rows[0].fits else beside(find)
        limits = find_limits(planner, room, config.ranks, max(sides.values()), longest)
        savings = [] if found is None else [Saving(**saving) for saving in found()["savings"]]
    peaks = {config.quantization: [row.memory.peak_allocated for row in rows], **others()}
    return Plan(
        config=request,
        task_type=meta.task_type,
        device=device,
        room=room,
        rows=tuple(rows),
        by_quantization={
            name: dict(zip(config.ranks, peaks[name], strict=True))
            for name in dict.fromkeys((*COMPARED, config.quantization))
        },
        limits=limits,
        savings=tuple(savings),
        notes=tuple(notes),
    )


def _peaks(planner: Planner, quantizations: Sequence[Quantization]) -> dict[str, Any]:
    """Return bytes of the training peak of every rank, by quantisation."""
    ranks = planner.config.ranks
    peaks: dict[str, Any] = {}
    for name in quantizations:
        config = replace(planner.config, quantization=name)
        other = Planner(planner.skeleton, config, planner.device, evaluation=False)
        peaks[name] = [step.peak_allocated for step in other.by_rank(ranks).values()]
    return peaks
