"""One resumable pass of a network over a dataset, on this machine or on a Ray cluster."""
