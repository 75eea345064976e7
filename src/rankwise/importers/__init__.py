"""Other people's results as evidence."""

from rankwise.importers.results import Imported, read_results

__all__ = ["Imported", "read_results"]
