"""What rankwise knows of Hugging Face models."""
