"""What replaces a network's operations while it runs: gradient rules, padding, pooling, packing."""
