"""Datasets of images, a network's pass over them, the store that keeps it, and the search in it."""
