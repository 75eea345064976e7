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
    from rankwise.lora.adapter_files import read_adapter, write_adapter
    from rankwise.lora.cut import ranks_by_budget, ranks_by_energy, truncate
    from rankwise.lora.growth import grow
    from rankwise.lora.singular import Spectrum, spectrum

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
    "Spectrum": "singular",
    "grow": "growth",
    "ranks_by_budget": "cut",
    "ranks_by_energy": "cut",
    "read_adapter": "adapter_files",
    "spectrum": "singular",
    "truncate": "cut",
    "write_adapter": "adapter_files",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the package stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise.lora' has no attribute {name!r}")
    return getattr(import_module(f"rankwise.lora.{_HOMES[name]}"), name)
