"""The algebra of adapters: no training here.

`spectrum`, `truncate` and `grow` work on adapters in memory:

    >>> from rankwise.lora import Adapter, spectrum, truncate
    >>> found = spectrum(Adapter(tensors, config))  # doctest: +SKIP
    >>> cuts = {rank: truncate(found, rank) for rank in (4, 8, 16)}  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "Adapter": "adapter",
    "Spectrum": "spectra",
    "grow": "growth",
    "ranks_by_budget": "truncation",
    "ranks_by_energy": "truncation",
    "read_adapter": "files",
    "spectrum": "spectra",
    "truncate": "truncation",
    "write_adapter": "files",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the package stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise.lora' has no attribute {name!r}")
    return getattr(import_module(f"rankwise.lora.{_HOMES[name]}"), name)
