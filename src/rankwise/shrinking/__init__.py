"""After training: the smallest rank that a trained adapter can be truncated to."""
