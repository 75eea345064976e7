"""The algebra of LoRA adapters: spectra, truncation, growth. Nothing here trains.

    >>> from rankwise.lora import Adapter, spectrum, truncate
    >>> decomposed = spectrum(Adapter(tensors, config))  # doctest: +SKIP
    >>> truncated = {rank: truncate(decomposed, rank) for rank in (4, 8, 16)}  # doctest: +SKIP

The modules import torch inside their functions, so that ``import rankwise`` stays light.
"""

from rankwise.lora.adapter import Adapter
from rankwise.lora.files import read_adapter, write_adapter
from rankwise.lora.growth import grow
from rankwise.lora.spectra import Spectrum, spectrum
from rankwise.lora.truncation import ranks_by_budget, ranks_by_energy, truncate

__all__ = [
    "Adapter",
    "Spectrum",
    "grow",
    "ranks_by_budget",
    "ranks_by_energy",
    "read_adapter",
    "spectrum",
    "truncate",
    "write_adapter",
]
