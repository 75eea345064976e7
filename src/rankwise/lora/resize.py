"""An adapter on disk cut or grown: the Python call behind ``rankwise resize``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.checks import check_whole
from rankwise.errors import RequestError
from rankwise.lora.adapter import BASE_CHANGED_BY, Adapter, pairs
from rankwise.lora.files import read_adapter, refuse_taken, write_adapter
from rankwise.lora.growth import grow
from rankwise.lora.spectra import Spectrum, spectrum
from rankwise.lora.truncation import check_energy, ranks_by_budget, ranks_by_energy, truncate

AUTO = "auto:"


@dataclass(frozen=True)
class ResizedLayer:
    """One layer before and after.

    Attributes:
        name: of the layer in the base model.
        rank_before: its rank.
        rank: its new rank.
        energy: share of the squared singular values of its delta-W that is left.
        error: Frobenius norm of what its delta-W lost, before rounding to the file's dtype.
    """

    name: str
    rank_before: int
    rank: int
    energy: float
    error: float


@dataclass(frozen=True)
class Resized:
    """What became of an adapter.

    Attributes:
        out: directory of the new one.
        layers: in the order of their names.
        params_before: entries of all factors A and B.
        params: likewise of the new adapter.
        energy: share of the squared singular values, over all layers, that is left.
    """

    out: Path
    layers: tuple[ResizedLayer, ...]
    params_before: int
    params: int
    energy: float

    def as_dict(self) -> dict[str, Any]:
        """Return all as JSON values."""
        return {
            "out": str(self.out),
            "params_before": self.params_before,
            "params": self.params,
            "energy": self.energy,
            "layers": [vars(layer) for layer in self.layers],
        }


def resize(
    source: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    rank_pattern: str | None = None,
    seed: int = 0,
) -> Resized:
    """Cut or grow a PEFT LoRA adapter on disk.

    Args:
        source: directory of the adapter.
        out: directory of the new one, new or empty.
        rank: for all layers. Up to the largest present rank it is a cut, and layers at or below it stay as they are;
            above, every layer grows to it.
        energy: cut each layer to the smallest rank that keeps this share of its squared singular values.
        rank_pattern: ``auto:PARAMS``: cut to at most so many parameters, shared among the layers by energy.
        seed: of the new entries where the adapter grows.

    Raises:
        RequestError: not exactly one of the three is given, one of them cannot be, the adapter cannot be read or
            resized, or something lies at ``out``.
        RankwiseError: ``out`` cannot be written.

    Example:
        >>> resize("best", "best-r4", rank=4).energy  # doctest: +SKIP
        0.97
    """
    source, out = Path(source), Path(out)
    given = {"rank": rank, "energy": energy, "rank_pattern": rank_pattern}
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise RequestError(
            f"{' and '.join(names) if names else 'no size'} given; allowed is exactly one of --rank, --energy and "
            "--rank-pattern"
        )
    if rank is not None:
        rank = check_whole("rank", rank, at_least=1)
    if energy is not None:
        energy = check_energy(energy)
    params = None if rank_pattern is None else _budget(rank_pattern)
    seed = check_whole("seed", seed, at_least=0)
    refuse_taken(out)
    adapter = read_adapter(source)
    _refuse(adapter, source)
    found = spectrum(adapter)
    if energy is not None:
        new = truncate(found, ranks_by_energy(found, energy))
    elif params is not None:
        new = truncate(found, ranks_by_budget(found, params))
    else:
        assert rank is not None
        new = truncate(found, rank) if rank <= found.largest_rank else grow(adapter, rank, seed)
    write_adapter(new, out)
    return _account(found, new, out)


def _budget(text: str) -> int:
    number = text.removeprefix(AUTO)
    if number == text:
        raise RequestError(f"rank_pattern {text!r}: allowed is auto:PARAMS, as in auto:500000")
    return check_whole("rank_pattern auto:PARAMS with PARAMS", number, at_least=1)


def _refuse(adapter: Adapter, source: Path) -> None:
    """Refuse an adapter whose effect is not kept when delta-W is."""
    config, shown = adapter.config, f"adapter {str(source)!r}"
    if config.get("use_dora"):
        raise RequestError(
            f"{shown} is DoRA, which scales the sum of base weight and delta-W: the best cut of delta-W is not the "
            "best of what it does, and the base weight is not here; allowed is plain LoRA"
        )
    start = str(config.get("init_lora_weights"))
    if start.startswith(BASE_CHANGED_BY):
        raise RequestError(
            f"{shown} changes the base weight by {start} when it is loaded, in a way that depends on its rank; save it "
            "as plain LoRA first (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if start == "mica" or config.get("ensure_weight_tying"):
        why = (
            "freezes B (mica)"
            if start == "mica"
            else "ties factors of two layers (ensure_weight_tying)"
        )
        raise RequestError(
            f"{shown} {why}, which resized factors would break; allowed is plain LoRA"
        )


def _account(found: Spectrum, new: Adapter, out: Path) -> Resized:
    after = {pair.name: pair for pair in pairs(new)}
    layers = []
    for layer in found.layers:
        rank = after[layer.pair.name].rank
        rest = layer.singular_values[rank:]
        kept = float(layer.energy[min(rank, layer.pair.rank) - 1])
        layers.append(
            ResizedLayer(
                layer.pair.name, layer.pair.rank, rank, kept, float(rest.square().sum().sqrt())
            )
        )
    return Resized(
        out=out,
        layers=tuple(layers),
        params_before=found.params,
        params=sum(pair.rank * (pair.d_in + pair.d_out) for pair in after.values()),
        energy=found.energy_at({name: pair.rank for name, pair in after.items()}),
    )
