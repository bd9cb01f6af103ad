"""What the output of a network means, and what may be asked of it."""
