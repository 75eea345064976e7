"""Results of others as evidence."""

from rankwise.analysis.read import ImportedResults, read_results

__all__ = ["ImportedResults", "read_results"]
