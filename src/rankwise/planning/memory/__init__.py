"""Memory of a training step before it runs."""
