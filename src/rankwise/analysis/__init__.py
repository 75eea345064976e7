"""Other people's results as evidence."""

from rankwise.analysis.read import Imported, read_results

__all__ = ["Imported", "read_results"]
