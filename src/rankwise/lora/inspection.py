"""What adapters on disk hold: the Python call behind ``rankwise inspect``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RequestError
from rankwise.lora.adapter import BASE_CHANGED_BY, Adapter, pairs
from rankwise.lora.files import read_adapter
from rankwise.lora.overlap import LayerOverlap, overlaps
from rankwise.lora.spectra import MOST, LayerSpectrum, Spectrum, spectrum

CAUTION = (
    "Spectra describe what was learnt; they do not decide the rank. A small effective or stable rank does not show "
    "that a small rank suffices, and energy is not quality: only held-out losses tell, of a sweep or of the adapter "
    "before and after a cut."
)


@dataclass(frozen=True)
class Inspection:
    """The spectra of an adapter, and what it shares with another.

    Attributes:
        adapter: its directory.
        spectrum: see `rankwise.lora.spectrum`.
        other: directory of the second adapter; None if there is none.
        overlaps: what the two share, in the layers that both have.
        notes: what to keep in mind about this adapter.
    """

    adapter: Path
    spectrum: Spectrum
    other: Path | None
    overlaps: tuple[LayerOverlap, ...]
    notes: tuple[str, ...]

    def energy_by_rank(self) -> dict[int, float]:
        """Return the share of the energy that a cut of all layers to rank 1, 2, 4, ... keeps, over all layers."""
        largest = self.spectrum.largest_rank
        ranks = [2**power for power in range(largest.bit_length()) if 2**power < largest] + [
            largest
        ]
        names = [layer.pair.name for layer in self.spectrum.layers]
        return {rank: self.spectrum.energy_at(dict.fromkeys(names, rank)) for rank in ranks}

    def as_dict(self) -> dict[str, Any]:
        """Return all as JSON values."""
        content: dict[str, Any] = {
            "adapter": str(self.adapter),
            "params": self.spectrum.params,
            "energy_by_rank": {str(rank): share for rank, share in self.energy_by_rank().items()},
            "layers": [_layer(layer) for layer in self.spectrum.layers],
            "caution": CAUTION,
            "notes": list(self.notes),
        }
        if self.other is not None:
            content["other"] = str(self.other)
            content["overlaps"] = [
                {**vars(one), "similarity": one.similarity.tolist()} for one in self.overlaps
            ]
        return content


def _layer(layer: LayerSpectrum) -> dict[str, Any]:
    pair = layer.pair
    return {
        "name": pair.name,
        "d_in": pair.d_in,
        "d_out": pair.d_out,
        "rank": pair.rank,
        "scaling": pair.scaling,
        "norm": layer.norm,
        "effective_rank": layer.effective_rank,
        "stable_rank": layer.stable_rank,
        "rank_for_90_percent": layer.rank_for(0.9),
        "rank_for_99_percent": layer.rank_for(MOST),
        "uses_rank": layer.uses_rank,
        "singular_values": layer.singular_values.tolist(),
        "energy": layer.energy.tolist(),
    }


def inspect_adapter(adapter: Path | str, other: Path | str | None = None) -> Inspection:
    """Take a PEFT LoRA adapter apart, and compare it with another one of the same base model.

    Args:
        adapter: directory of the adapter.
        other: directory of the second one.

    Raises:
        RequestError: one cannot be read, or they do not belong to one base model.

    Example:
        >>> inspect_adapter("best").spectrum.layers[0].stable_rank  # doctest: +SKIP
        1.8
    """
    adapter, other = Path(adapter), None if other is None else Path(other)
    found = spectrum(read_adapter(adapter))
    notes = _notes(found.adapter)
    shared: list[LayerOverlap] = []
    if other is not None:
        second = read_adapter(other)
        try:
            shared = overlaps(found.adapter, second)
        except RequestError as error:
            raise RequestError(f"adapters {str(adapter)!r} and {str(other)!r}: {error}") from None
        alone = len(found.layers) + len(pairs(second)) - 2 * len(shared)
        if alone:
            notes.append(
                f"{alone} layers are in one of the two adapters only, and are not compared."
            )
    return Inspection(adapter, found, other, tuple(shared), tuple(notes))


def _notes(adapter: Adapter) -> list[str]:
    """Say where ``scaling * B @ A`` is not all that the adapter does."""
    notes = []
    if adapter.config.get("use_dora"):
        notes.append(
            "DoRA: the figures are of scaling * B @ A, before the sum with the base weight is scaled."
        )
    start = str(adapter.config.get("init_lora_weights"))
    if start.startswith(BASE_CHANGED_BY):
        notes.append(
            f"{start}: B @ A holds what was taken from the base weight at the start, not only what was learnt."
        )
    return notes
