"""What replaces an operation of the network while it runs: gradient rules, padding, pooling, packed weights."""
