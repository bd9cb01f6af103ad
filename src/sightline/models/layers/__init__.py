"""The layers of a network: their outputs, their names, where they lie in the image."""
