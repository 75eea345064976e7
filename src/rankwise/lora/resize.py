"""Truncation or growth of an adapter on disk: the Python call behind ``rankwise resize``."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.checks import check_whole
from rankwise.errors import RequestError
from rankwise.lora.adapter import (
    INITS_THAT_CHANGE_THE_BASE,
    Adapter,
    FactorPair,
    factor_pairs,
)
from rankwise.lora.files import check_new_directory, companions, read_adapter, write_adapter
from rankwise.lora.growth import grow
from rankwise.lora.spectra import LayerSpectrum, Spectrum, spectrum
from rankwise.lora.truncation import check_energy, ranks_by_budget, ranks_by_energy, truncate

AUTO = "auto:"


@dataclass(frozen=True)
class ResizedLayer:
    """One layer before and after.

    Attributes:
        energy: Share of its squared singular values that is kept.
        error: Frobenius norm of the lost part of its delta-W, before rounding to the file's dtype.
    """

    name: str
    rank_before: int
    rank: int
    energy: float
    error: float


@dataclass(frozen=True)
class Resized:
    """An account of a resized adapter.

    Attributes:
        out: Directory of the new adapter.
        params_before: Number of entries of all factors A and B before.
        params: Number of entries of all factors A and B after.
        energy: Share of the squared singular values of all layers that is kept.
        rounding: Norm that rounding to the dtypes of the file added, per norm of the kept delta-W.
        dtypes: Dtypes of the factors below fp32.
        layers: The layers, ordered by name.
        copied: Names of files and folders copied from beside the adapter.
        left: Names of those that were not.
    """

    out: Path
    params_before: int
    params: int
    energy: float
    rounding: float
    dtypes: tuple[str, ...]
    layers: tuple[ResizedLayer, ...]
    copied: tuple[str, ...]
    left: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        layers = [vars(layer) for layer in self.layers]
        return {**vars(self), "out": str(self.out), "layers": layers}


def resize(
    source: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    rank_pattern: str | None = None,
    seed: int = 0,
) -> Resized:
    """Truncate or grow a PEFT LoRA adapter on disk. Exactly one size must be given.

    Args:
        source: Directory of the adapter.
        out: Directory of the new adapter, new or empty.
        rank: Rank to which layers of a higher one are truncated, while the others stay. If no layer
            has a rank so high, every layer grows to it.
        energy: Share of its squared singular values that each layer keeps, at the smallest rank.
        rank_pattern: ``auto:PARAMS``: at most this many parameters, shared by energy.
        seed: Seed of the new entries if the adapter grows.

    Raises:
        RequestError: The sizes are wrong, the adapter cannot be read or resized, or ``out`` is not
            empty.
        RankwiseError: ``out`` cannot be written.

    Example:
        >>> resize("best", "best-r4", rank=4).energy  # doctest: +SKIP
        0.97
    """
    source, out = Path(source), Path(out)
    sizes = {"--rank": rank, "--energy": energy, "--rank-pattern": rank_pattern}
    given = [option for option, value in sizes.items() if value is not None]
    if len(given) != 1:
        allowed = "allowed is exactly one of --rank, --energy and --rank-pattern"
        raise RequestError(f"{' and '.join(given) or 'no size'} given; {allowed}")
    # All checks of the request come before any file is read.
    rank = None if rank is None else check_whole("rank", rank, at_least=1)
    energy = None if energy is None else check_energy(energy)
    params = None if rank_pattern is None else _budget(rank_pattern)
    seed = check_whole("seed", seed, at_least=0)
    check_new_directory(out)
    adapter = read_adapter(source)
    check_resizable(adapter, f"adapter {str(source)!r}")
    before = spectrum(adapter)
    if energy is not None:
        after = truncate(before, ranks_by_energy(before, energy))
    elif params is not None:
        after = truncate(before, ranks_by_budget(before, params))
    else:
        assert rank is not None
        grows = rank > before.largest_rank
        after = grow(adapter, rank, seed) if grows else truncate(before, rank)
    beside, left = companions(source)
    write_adapter(after, out, beside)
    return _account(before, after, out, beside, left)


def _budget(text: str) -> int:
    number = text.removeprefix(AUTO)
    if number == text:
        raise RequestError(f"rank_pattern {text!r}: allowed is auto:PARAMS, as in auto:500000")
    return check_whole("rank_pattern auto:PARAMS with PARAMS", number, at_least=1)


def check_resizable(adapter: Adapter, label: str) -> None:
    """Refuse an adapter with an effect that depends on more than delta-W."""
    if adapter.config.get("use_dora"):
        raise RequestError(
            f"{label} is DoRA, which rescales the sum of base weight and delta-W, so that the best "
            "approximation of delta-W is not the best one of the layer; allowed is plain LoRA"
        )
    check_init(adapter, label)
    init = str(adapter.config.get("init_lora_weights"))
    reason = "freezes B (mica)" if init == "mica" else ""
    if adapter.config.get("ensure_weight_tying"):
        reason = "ties factors of two layers (ensure_weight_tying)"
    if reason:
        raise RequestError(f"{label} {reason}, which resizing would break; allowed is plain LoRA")


def check_init(adapter: Adapter, label: str) -> None:
    """Refuse an adapter whose initial values change the base, so that delta-W is not its effect."""
    init = str(adapter.config.get("init_lora_weights"))
    if init.startswith(INITS_THAT_CHANGE_THE_BASE):
        raise RequestError(
            f"{label} changes the base weight by {init} when it is loaded; save it as plain LoRA "
            "first (save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _account(
    before: Spectrum, after: Adapter, out: Path, beside: list[Path], left: list[Path]
) -> Resized:
    pairs = factor_pairs(after)
    layers = []
    squared_rounding = squared_norm = 0.0
    dtypes: dict[str, None] = {}
    for layer, pair in zip(before.layers, pairs, strict=True):
        kept, lost = layer.energy_at(pair.rank), layer.error_at(pair.rank)
        layers.append(ResizedLayer(pair.name, layer.pair.rank, pair.rank, energy=kept, error=lost))
        squared_norm += kept * layer.norm**2
        if pair.rank < layer.pair.rank and pair.a.dtype.itemsize < 4:
            dtypes[str(pair.a.dtype).removeprefix("torch.")] = None
            squared_rounding += _rounding(layer, pair) ** 2
    return Resized(
        out=out,
        params_before=before.params,
        params=sum(pair.params for pair in pairs),
        energy=before.energy_at({pair.name: pair.rank for pair in pairs}),
        rounding=math.sqrt(squared_rounding / squared_norm) if squared_norm else 0.0,
        dtypes=tuple(dtypes),
        layers=tuple(layers),
        copied=tuple(path.name for path in beside),
        left=tuple(path.name for path in left),
    )


def _rounding(layer: LayerSpectrum, pair: FactorPair) -> float:
    """Return the Frobenius norm of what rounding the factors changed in a truncated layer."""
    import torch

    a, b = pair.matrices()
    exact_b = layer.left[:, : pair.rank].double() * layer.values[: pair.rank]
    rows = torch.cat([a, layer.right[: pair.rank].double()])  # (r + k, d_in)
    columns = torch.cat([b, -exact_b], dim=1)  # (d_out, r + k)
    core = torch.linalg.qr(columns)[1] @ torch.linalg.qr(rows.T)[1].T
    return abs(pair.scaling) * float(core.norm())
