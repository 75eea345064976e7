"""The memory of a sweep's trials: which ranks fit this machine, and how trials train there."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.models.files import load_arguments
from rankwise.planning.config import PlanConfig
from rankwise.store.records import SweepRecord, read_sweep
from rankwise.store.resuming import can_resume
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.request_record import max_length, model_name
from rankwise.tasks.base import Task

if TYPE_CHECKING:
    from rankwise.planning.machine_fit import Fit


def fit_to_machine(config: SweepConfig, task: Task) -> "Fit":
    """Return how the trials of a sweep fit the memory of this machine, see `how_many_fit`.

    Raises:
        RequestError: a rank does not fit.
    """
    from rankwise.planning.machine_fit import Fit, how_many_fit, this_machine
    from rankwise.planning.pack_fit import FusedRequest

    if config.trainer is not None:  # its own memory is its own affair
        return Fit(at_once=config.trials_at_once)
    device, free = this_machine(config.device)
    fused = None
    if config.engine == "fused":
        # A CPU that nobody limits trains as it always did.
        chooses = not device.is_cpu or config.max_memory is not None
        fused = FusedRequest(
            task.objective,
            config.gradient_checkpointing,
            config.micro_batch_tokens,
            config.attention,
            chooses,
        )
    return how_many_fit(
        plan_config(config, task),
        lambda: longest_text(config, task),
        config.max_memory,
        (device, free),
        fused,
        config.micro_batch_tokens,
    )


def in_force(config: SweepConfig, fit: "Fit") -> SweepConfig:
    """Return the request with the values that the plan chose in place of ``auto``.

    Parts of batches are as small as both ask for: a run that ran out of memory lowers the number.
    """
    if config.trainer is not None:
        return config
    checkpointing = config.gradient_checkpointing
    if checkpointing == "auto":
        checkpointing = "on" if fit.gradient_checkpointing else "off"
    limits = [each for each in (config.micro_batch_tokens, fit.micro_batch_tokens) if each]
    tokens = min(limits, default=None)
    return replace(config, gradient_checkpointing=checkpointing, micro_batch_tokens=tokens)


def choice(config: SweepConfig, fit: "Fit") -> dict[str, Any]:
    """Return what was chosen, as ``sweep.json`` holds it."""
    values = in_force(config, fit)
    return {
        "gradient_checkpointing": values.gradient_checkpointing,
        "micro_batch_tokens": values.micro_batch_tokens,
        "pack_size": fit.at_once,
    }


def kept_choice(fit: "Fit", directory: Path, record: SweepRecord, *, extend: bool) -> "Fit":
    """Return the choice that an earlier command made for the same sweep, if it still fits.

    Raises:
        RequestError: the directory holds another sweep, see `can_resume`.
    """
    if not can_resume(directory, record, extend=extend):
        return fit
    before = read_sweep(directory)
    return fit.kept(before.chosen) if before and before.machine == record.machine else fit


def plan_config(config: SweepConfig, task: Task) -> PlanConfig:
    """Return the plan's request for one trial of a sweep, at the longest length allowed."""
    from rankwise.models.device import find_dtype, find_torch_device, precision_name

    device = find_torch_device(config.device)
    precision = precision_name(find_dtype(config.precision, device))
    return PlanConfig(
        model=model_name(config),
        ranks=config.ranks,
        batch_size=config.batch_size,
        seq_len=max_length(config, task),
        precision=precision,  # type: ignore[arg-type]
        optimizer=config.optimizer,
        # As the reference engine trains; the fused one has no autocast.
        autocast=precision != "fp32" and device.type != "mps",
        gradient_checkpointing=config.gradient_checkpointing == "on",
        quantization=config.quantization,
        use_dora=config.use_dora,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        task_type=task.objective.task_type,  # type: ignore[arg-type]
        num_labels=task.objective.settings.get("num_labels"),
        trust_remote_code=config.trust_remote_code,
    )


def longest_text(config: SweepConfig, task: Task) -> int:
    """Return the number of tokens of the longest training example."""
    from transformers import AutoTokenizer

    place, options = load_arguments(model_name(config))
    tokenizer = AutoTokenizer.from_pretrained(
        place, **options, trust_remote_code=config.trust_remote_code
    )
    encoded, _ = task.encoder(task.train, tokenizer, max_length(config, task))
    return max(encoded.lengths)
