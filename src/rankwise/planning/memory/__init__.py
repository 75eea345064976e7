"""What a training step will take, before it runs."""
