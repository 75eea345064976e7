"""The fused engine: several adapters trained over one frozen base, without padding."""
