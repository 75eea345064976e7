"""The sweep directory."""
