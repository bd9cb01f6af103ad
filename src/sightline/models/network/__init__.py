"""The private copy of the caller's network, and running it."""
