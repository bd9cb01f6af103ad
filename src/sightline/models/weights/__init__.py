"""Checkpoints, the names in them, and the weights that are known."""
