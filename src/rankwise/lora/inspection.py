"""Inspection of adapters on disk: the Python call behind ``rankwise inspect``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RequestError
from rankwise.lora.adapter import INITS_THAT_CHANGE_THE_BASE, Adapter, factor_pairs
from rankwise.lora.files import read_adapter
from rankwise.lora.overlap import LayerOverlap, overlaps
from rankwise.lora.parts import Part, describe_parts, other_parts
from rankwise.lora.spectra import NEARLY_ALL, LayerSpectrum, Spectrum, spectrum

CAUTION = (
    "Spectra describe what was learned; they do not decide the rank. A small effective or stable "
    "rank does not show that a small rank suffices, and energy is not quality. Only held-out "
    "losses decide: those of a sweep, or of the adapter before and after truncation."
)


@dataclass(frozen=True)
class Inspection:
    """The spectra of an adapter, and its overlap with a second one.

    Attributes:
        adapter: Directory of the adapter.
        spectrum: Its spectrum, see `rankwise.lora.spectrum`.
        other: Directory of the second adapter; None if there is none.
        overlaps: Directions that the two share in the layers that both have.
        parts: What the adapter trains besides its factors, which no figure counts.
        notes: What else the adapter does, and layers that were not compared.
    """

    adapter: Path
    spectrum: Spectrum
    other: Path | None
    overlaps: tuple[LayerOverlap, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    def energy_by_rank(self) -> dict[int, float]:
        """Return the share of the energy that truncation to rank 1, 2, 4, ... keeps."""
        names = [layer.pair.name for layer in self.spectrum.layers]
        largest = self.spectrum.largest_rank
        powers = [2**power for power in range((largest - 1).bit_length())]  # those below it
        ranks = [*powers, largest]
        return {rank: self.spectrum.energy_at(dict.fromkeys(names, rank)) for rank in ranks}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        content: dict[str, Any] = {
            "adapter": str(self.adapter),
            "params": self.spectrum.params,
            "energy_by_rank": {str(rank): share for rank, share in self.energy_by_rank().items()},
            "layers": [_layer_dict(layer) for layer in self.spectrum.layers],
            "not_in_these_figures": [vars(part) for part in self.parts],
            "caution": CAUTION,
            "notes": list(self.notes),
        }
        if self.other is not None:
            content["other"] = str(self.other)
            content["overlaps"] = [
                {**vars(layer), "similarity": layer.similarity.tolist()} for layer in self.overlaps
            ]
        return content


def inspect_adapter(adapter: Path | str, other: Path | str | None = None) -> Inspection:
    """Decompose the adapter in a directory, and compare it with another one of the same base model.

    Raises:
        RequestError: An adapter cannot be read, or the two belong to different base models.

    Example:
        >>> inspect_adapter("best").spectrum.layers[0].stable_rank  # doctest: +SKIP
        1.8
    """
    adapter, other = Path(adapter), None if other is None else Path(other)
    decomposed = spectrum(read_adapter(adapter))
    parts = other_parts(decomposed.adapter)
    notes = [*_notes(decomposed.adapter), *describe_parts(parts)]
    shared: list[LayerOverlap] = []
    if other is not None:
        second = read_adapter(other)
        try:
            shared = overlaps(decomposed.adapter, second)
        except RequestError as error:
            raise RequestError(f"adapters {str(adapter)!r} and {str(other)!r}: {error}") from None
        unmatched = len(decomposed.layers) + len(factor_pairs(second)) - 2 * len(shared)
        if unmatched:
            notes.append(f"{unmatched} layers are in only one of the adapters and not compared.")
    return Inspection(adapter, decomposed, other, tuple(shared), tuple(parts), tuple(notes))


def _notes(adapter: Adapter) -> list[str]:
    """Return remarks on an adapter that does more than add ``scaling * B @ A``."""
    notes = []
    if adapter.config.get("use_dora"):
        notes.append(
            "DoRA: the figures describe scaling * B @ A, before DoRA rescales its sum with the "
            "base weight."
        )
    init = str(adapter.config.get("init_lora_weights"))
    if init.startswith(INITS_THAT_CHANGE_THE_BASE):
        notes.append(
            f"{init}: B @ A holds the part taken out of the base weight at the start as well as "
            "what was learned."
        )
    return notes


def _layer_dict(layer: LayerSpectrum) -> dict[str, Any]:
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
        "rank_for_99_percent": layer.rank_for(NEARLY_ALL),
        "uses_rank": layer.uses_rank,
        "singular_values": layer.singular_values.tolist(),
        "energy": layer.energy.tolist(),
    }
