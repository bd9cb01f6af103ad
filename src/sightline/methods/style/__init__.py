"""Style transfer, by optimization and in one pass."""
