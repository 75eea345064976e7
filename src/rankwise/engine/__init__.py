"""Trains trials: trials in, finished trials out."""
