"""The algebra of adapters: no training here."""
