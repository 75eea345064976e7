"""The user's own trainer as an engine: its trials are commands, judged by what they leave."""
