"""The adapter that a trainer left: found by its ``adapter_config.json``, and checked."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import RankwiseError, RequestError, some
from rankwise.lora.adapter import Adapter, factor_pairs
from rankwise.lora.files import read_adapter
from rankwise.lora.foreign import CONFIG

if TYPE_CHECKING:
    from rankwise.engine.trial import Trial

CHECKPOINT = re.compile(r"checkpoint[-_](\d+)")
NOT_FINITE = "weights that are not finite"


class UnusableTrialError(RankwiseError):
    """A trial left nothing that can be judged; the message is the reason."""


def find_adapter(out: Path) -> Path:
    """Return the directory of the adapter that a trial left.

    The one nearest to the top counts; of several there, one that is no checkpoint, or else the last
    checkpoint; of several that are no checkpoints, the newest.

    Raises:
        UnusableTrialError: there is none.
    """
    found = [path for path in out.rglob(CONFIG) if path.is_file()]
    if not found:
        inside = some(sorted(path.name for path in out.iterdir())) if out.is_dir() else ""
        raise UnusableTrialError(
            f"it left no adapter: no {CONFIG} below {{out}}, which holds {inside or 'nothing'}"
        )
    return max(found, key=lambda path: _precedence(path, out)).parent


def _precedence(config: Path, out: Path) -> tuple[int, bool, int, float]:
    parts = config.relative_to(out).parts
    match = CHECKPOINT.fullmatch(config.parent.name)
    step = int(match[1]) if match else 0
    return -len(parts), match is None, step, config.stat().st_mtime


def read_trained_adapter(directory: Path, trial: "Trial", base: str | None) -> Adapter | None:
    """Read an adapter and check that it is what the trial asked for.

    Args:
        directory: the adapter's directory.
        trial: rank and scaling that were asked for.
        base: the base model of the sweep, a directory or a hub id; None for any.

    Returns:
        The adapter; None if it has weights that are not finite.

    Raises:
        UnusableTrialError: it is no LoRA adapter, or one of another rank, alpha or base.
    """
    try:
        adapter = read_adapter(directory)
        ranks = {pair.rank: pair.name for pair in factor_pairs(adapter)}
    except RequestError as error:
        if NOT_FINITE in str(error):
            return None
        raise UnusableTrialError(f"it left no LoRA adapter: {error}") from None
    for rank, layer in ranks.items():
        if rank != trial.rank:
            raise UnusableTrialError(
                f"its adapter has rank {rank} (layer {layer}), and {trial.rank} was asked for"
            )
    config = adapter.config
    alpha, rslora = config.get("lora_alpha"), bool(config.get("use_rslora"))
    if alpha != trial.lora_alpha or rslora != trial.use_rslora:
        asked = _scaling(trial.lora_alpha, trial.use_rslora)
        raise UnusableTrialError(
            f"its adapter has {_scaling(alpha, rslora)}, and {asked} was asked for: pass "
            "{lora_alpha} to the trainer, or name its rule, as in --lora-alpha 2r or fixed:32"
        )
    trained_on = config.get("base_model_name_or_path")
    if trained_on and base is not None and not same_model(str(trained_on), base):
        raise UnusableTrialError(
            f"its adapter was trained on {str(trained_on)!r}, and the sweep's model is {base!r}"
        )
    return adapter


def _scaling(alpha: object, use_rslora: bool) -> str:
    number = f"{alpha:g}" if isinstance(alpha, int | float) else alpha
    return f"lora_alpha {number}{' with rsLoRA' if use_rslora else ''}"


def same_model(name: str, other: str) -> bool:
    """Return whether two names may mean the same model: equal, one path, or of one last part.

    A hub id and a copy of it on disk usually share the last part of their names.
    """
    if name == other or os.path.realpath(name) == os.path.realpath(other):
        return True
    if Path(name).exists() and Path(other).exists():
        return False
    return Path(name).name.lower() == Path(other).name.lower()
