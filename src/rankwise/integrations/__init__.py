"""Callbacks for other libraries, to be used in a user's own training."""
