"""Which image would make the network respond so: gradient ascent, inversion, DeepDream."""
