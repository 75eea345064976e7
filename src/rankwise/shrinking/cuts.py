"""Truncations of one adapter: one rank for all layers, or a rank for each layer at equal size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwise.errors import RequestError
from rankwise.lora.adapter import Adapter, factor_pairs, replace_pairs
from rankwise.lora.files import read_adapter
from rankwise.lora.resize import check_resizable
from rankwise.lora.spectra import Spectrum, spectrum
from rankwise.lora.truncation import ranks_by_budget, truncate


@dataclass(frozen=True)
class Cut:
    """One truncation of an adapter; the adapter itself has its own rank.

    Attributes:
        rank: Rank of all layers; with a rank for each layer, the rank of equal size.
        adapter: The truncated adapter.
        per_layer: Whether each layer has a rank of its own.
        healed: Whether it was trained on after the cut.
    """

    rank: int
    adapter: Adapter
    per_layer: bool = False
    healed: bool = False

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What tells it from the adapter's other truncations: rank, per layer, healed."""
        return self.rank, self.per_layer, self.healed

    @property
    def params(self) -> int:
        """Number of entries of all factors A and B."""
        return sum(pair.params for pair in factor_pairs(self.adapter))

    @property
    def bytes(self) -> int:
        """Size of all tensors, those of modules trained in full included."""
        return sum(x.numel() * x.element_size() for x in self.adapter.tensors.values())

    @property
    def largest_rank(self) -> int:
        """Largest rank of a layer, for which a server must have room."""
        return max(pair.rank for pair in factor_pairs(self.adapter))


def decompose(directory: Path) -> Spectrum:
    """Read an adapter and decompose the delta-W of its layers.

    Raises:
        RequestError: It cannot be read, or its effect is not that of its delta-W alone.
    """
    adapter = read_adapter(directory)
    check_resizable(adapter, f"adapter {str(directory)!r}")
    return spectrum(adapter)


def ranks_below(own: int, asked: Sequence[int] | None) -> list[int]:
    """Return the ranks to try, largest first: those asked for, or powers of two, below its own."""
    if asked is None:
        asked = [2**power for power in range(own.bit_length()) if 2**power < own]
    return sorted((rank for rank in asked if rank < own), reverse=True)


def make_cuts(decomposed: Spectrum, ranks: Sequence[int]) -> list[Cut]:
    """Truncate an adapter to each rank, in the same order."""
    return [Cut(rank, truncate(decomposed, rank)) for rank in ranks]


def make_per_layer_cuts(decomposed: Spectrum, cuts: Sequence[Cut]) -> list[Cut]:
    """Give each layer a rank of its own, at the size of each of some truncations.

    Raises:
        RequestError: The adapter has stacked experts, which share a rank.
    """
    shared = []
    for cut in cuts:
        ranks = ranks_by_budget(decomposed, cut.params)
        shared.append(Cut(cut.rank, truncate(decomposed, ranks), per_layer=True))
    return shared


def without_update(decomposed: Spectrum) -> Cut:
    """Return an adapter of rank 1 whose delta-W is zero; its other parts, as a head, stay."""
    adapter = truncate(decomposed, 1)
    pairs = []
    for pair in factor_pairs(adapter):
        a, b = pair.matrices()
        pairs.append(pair.with_matrices(a, b.zero_()))
    return Cut(0, replace_pairs(adapter, pairs))


def common_base(directories: Sequence[Path], adapters: Sequence[Adapter]) -> str:
    """Return the name of the base model in the configs of adapters.

    Raises:
        RequestError: A config names none, or two name different ones.
    """
    names: dict[str, Path] = {}
    for directory, adapter in zip(directories, adapters, strict=True):
        name = adapter.config.get("base_model_name_or_path")
        if not isinstance(name, str) or not name.strip():
            raise RequestError(
                f"adapter {str(directory)!r} names no base model in adapter_config.json; name it "
                "with --model"
            )
        names.setdefault(name, directory)
    if len(names) > 1:
        (first, one), (second, other) = list(names.items())[:2]
        raise RequestError(
            f"adapters {str(one)!r} and {str(other)!r} have different base models ({first!r} and "
            f"{second!r}); shrink them one by one, or name one base with --model"
        )
    return next(iter(names))
