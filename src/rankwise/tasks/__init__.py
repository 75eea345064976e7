"""From data to tokenised examples, and from logits to per-example loss and score."""
