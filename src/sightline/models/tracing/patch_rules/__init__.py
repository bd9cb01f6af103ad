"""How operations act on a batch of maps that are clean but for a patch each."""
