"""Parameters and memory of every rank, before any weight is loaded (``rankwise plan``)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

from rankwise.errors import RequestError
from rankwise.models.config import Quantization
from rankwise.planning.config import PlanConfig, PlanSettings
from rankwise.planning.fused_plan import FusedPlanner, SweepPlan
from rankwise.planning.machine_fit import chosen_device
from rankwise.planning.memory.devices import Device
from rankwise.planning.memory.setup import longest_input
from rankwise.planning.memory.step import StepMemory
from rankwise.planning.notes import expert_notes
from rankwise.planning.params import ParamCount, count_at_rank
from rankwise.planning.planner import Limits, Planner, Saving, find_limits, find_savings
from rankwise.planning.prepare import PreparedRequest, prepare
from rankwise.settings import requested_config

COMPARED: tuple[Quantization, ...] = ("none", "int8", "nf4")
"""Quantisations whose training peaks every plan compares."""
MATH_ATTENTION = (
    "PyTorch has no fused attention kernel for this model, precision and device, and keeps the "
    "scores (grouped keys in fp32, or before capability 8.0); --attention flash plans for one, "
    "with repeated keys"
)


@dataclass(frozen=True)
class PlanRow:
    """The plan of one rank.

    Attributes:
        rank: r.
        params: exact counts.
        memory: memory of a training step.
        margin: bytes left on the device, negative if it does not fit; None without a device.
    """

    rank: int
    params: ParamCount
    memory: StepMemory
    margin: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the device has room; None without a device."""
        return None if self.margin is None else self.margin >= 0


@dataclass(frozen=True)
class Plan:
    """Parameters and memory of every rank, and what fits.

    Attributes:
        config: the request.
        task_type: PEFT's task type.
        device: the device, which decides the kernels.
        room: bytes on the device; None if the request names no device and no memory.
        rows: the plan, rank by rank.
        by_quantization: bytes of the training peak by quantisation and rank.
        other_loop: memory by rank of a loop with autocast if the request is without it, and of one
            without autocast if it is with it; empty if that loop cannot be planned.
        limits: the most that fits; None without a device, and for the fused engine.
        sweep: what a sweep of the fused engine takes; None for the reference engine.
        savings: what to change first, if the smallest rank does not fit.
        notes: where the plan differs from the request.
    """

    config: PlanConfig
    task_type: str
    device: Device
    room: int | None
    rows: tuple[PlanRow, ...]
    by_quantization: dict[str, dict[int, int]]
    other_loop: dict[int, StepMemory]
    limits: Limits | None
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]
    sweep: SweepPlan | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; sizes in bytes."""
        content: dict[str, Any] = {
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
                    "layers": row.params.layers,
                }
                for row in self.rows
            ],
            "by_quantization": [
                {"quantization": name, "rank": rank, "peak_allocated": peak}
                for name, peaks in self.by_quantization.items()
                for rank, peak in peaks.items()
            ],
            "by_loop": [
                {"autocast": autocast, "rank": rank, "peak_allocated": memory.peak_allocated}
                for autocast, memories in sorted(self._by_loop().items())
                for rank, memory in memories.items()
            ],
            "limits": None if self.limits is None else asdict(self.limits),
            "savings": [asdict(saving) for saving in self.savings],
            "notes": list(self.notes),
        }
        if self.sweep is not None:
            del content["by_loop"], content["limits"], content["savings"]
            for row in content["ranks"]:  # scoring is not planned
                del row["memory"]["peak_eval"]
            content["sweep"] = asdict(self.sweep)
        return content

    def _by_loop(self) -> dict[bool, dict[int, StepMemory]]:
        """Return the memory by autocast and rank."""
        answer = {row.rank: row.memory for row in self.rows}
        return {self.config.autocast: answer, not self.config.autocast: self.other_loop}


def plan(
    model: str | None = None,
    *,
    config: PlanConfig | None = None,
    **settings: Unpack[PlanSettings],
) -> Plan:
    """Return the parameters and the memory of every rank, from the model's config alone.

    Args:
        model: a directory with ``config.json``, or a hub id.
        config: the whole request; or give its fields as keyword arguments.
        **settings: fields of `PlanConfig`, for example ``ranks=[4, 8]``, ``quantization="nf4"``,
            ``device="T4"``.

    Raises:
        RequestError: the request was wrong.

    Example:
        >>> import rankwise
        >>> rankwise.plan("path/to/Llama-2-7b", ranks=[8], device="T4")  # doctest: +SKIP
    """
    values: dict[str, object] = {**settings}
    if model is not None:
        values["model"] = model
    request = requested_config(PlanConfig, config, values, "a plan")
    device, room = chosen_device(request)
    prepared = prepare(request)
    if request.engine == "fused":
        return _plan_fused(prepared, device, room)
    planner = Planner(prepared.skeleton, prepared.config, device)
    rows = _rows(prepared, planner.by_rank(request.ranks), room)
    about_experts = expert_notes(prepared.skeleton, prepared.config, rows[0].params)
    notes = [*prepared.notes, *_idle_ranks(rows), *about_experts]
    if "math" in planner.kernels:
        notes.append(MATH_ATTENTION)
    by_quantization = _by_quantization(planner, rows, notes)
    other_loop = _changed(planner, notes, autocast=not request.autocast)
    meta = prepared.skeleton.meta
    limits = None
    savings: list[Saving] = []
    if room is not None:
        highest_rank = max(rows[0].params.smaller_sides.values())
        longest = 0 if meta.task_type == "IMAGE_CLS" else longest_input(meta.model)
        limits = find_limits(planner, room, request.ranks, highest_rank, longest)
        if not rows[0].fits:
            savings = find_savings(planner, room, request.ranks[0])
    return Plan(
        config=prepared.on_disk,
        task_type=meta.task_type,
        device=device,
        room=room,
        rows=tuple(rows),
        by_quantization=by_quantization,
        other_loop=other_loop,
        limits=limits,
        savings=tuple(savings),
        notes=tuple(notes),
    )


def _plan_fused(prepared: PreparedRequest, device: Device, room: int | None) -> Plan:
    """Return the plan of a sweep of the fused engine."""
    planner = FusedPlanner(prepared, device, room)
    rows = _rows(prepared, planner.by_rank(), room)
    about_experts = expert_notes(prepared.skeleton, prepared.config, rows[0].params)
    notes = [*prepared.notes, *_idle_ranks(rows), *about_experts]
    peaks: dict[str, dict[int, int]] = {}
    for name in dict.fromkeys((*COMPARED, prepared.config.quantization)):
        try:
            peaks[name] = planner.peaks(name)
        except RequestError as error:
            notes.append(f"no figures for quantization {name}: {error}")
    return Plan(
        config=prepared.on_disk,
        task_type=prepared.skeleton.meta.task_type,
        device=device,
        room=room,
        rows=tuple(rows),
        by_quantization=peaks,
        other_loop={},
        limits=None,
        savings=(),
        notes=tuple(notes),
        sweep=planner.sweep(),
    )


def _rows(
    prepared: PreparedRequest, memories: Mapping[int, StepMemory], room: int | None
) -> list[PlanRow]:
    """Return the plan rank by rank."""
    rows = []
    for rank, memory in memories.items():
        params = count_at_rank(prepared.skeleton, prepared.config, rank)
        rows.append(PlanRow(rank, params, memory, None if room is None else room - memory.needed))
    return rows


def _idle_ranks(rows: Sequence[PlanRow]) -> Iterator[str]:
    """Note each rank that is higher than a layer can use, with the smallest such layer."""
    for row in rows:
        name, side = min(row.params.smaller_sides.items(), key=lambda item: item[1])
        if side < row.rank:
            above = f"rank {row.rank} is above {side}"
            yield f"{above}, the smaller side of {name}, and adds nothing there"


def _by_quantization(
    planner: Planner, rows: Sequence[PlanRow], notes: list[str]
) -> dict[str, dict[int, int]]:
    """Return bytes of the training peak by quantisation and rank; note those that cannot run."""
    requested = planner.config.quantization
    peaks: dict[str, dict[int, int]] = {}
    for name in dict.fromkeys((*COMPARED, requested)):
        memories = {row.rank: row.memory for row in rows}
        if name != requested:
            memories = _changed(planner, notes, quantization=name)
        if memories:
            peaks[name] = {rank: memory.peak_allocated for rank, memory in memories.items()}
    return peaks


def _changed(planner: Planner, notes: list[str], **change: object) -> dict[int, StepMemory]:
    """Return the memory by rank of a changed request; note why if there is none."""
    config = replace(planner.config, **change)  # type: ignore[arg-type]
    other = Planner(planner.skeleton, config, planner.device, evaluation=False)
    try:
        return other.by_rank(config.ranks)
    except RequestError as error:
        ((name, value),) = change.items()
        what = f"for {name} {value}"
        if name == "autocast":
            what = "with autocast" if value else "without autocast"
        notes.append(f"no figures {what}: {error}")
        return {}
