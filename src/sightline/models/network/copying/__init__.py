"""The parts of copying a network: what is refused, and how each type of value is copied."""
