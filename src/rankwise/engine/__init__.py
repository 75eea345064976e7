"""Engines, which train trials and return finished trials."""
