"""Damaged inputs for every reader: a few in a test here, many in benchmarks/torture/readers.py."""
