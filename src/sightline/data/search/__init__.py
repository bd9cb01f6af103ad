"""Nearest neighbours among stored vectors, and their layout in the plane."""
