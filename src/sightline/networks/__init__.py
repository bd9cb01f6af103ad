"""Networks of our own that make images."""
