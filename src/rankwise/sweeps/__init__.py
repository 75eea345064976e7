"""A sweep, from its request to a decision on disk."""
