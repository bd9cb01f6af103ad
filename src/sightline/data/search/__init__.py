"""Exact nearest neighbours of vectors, and their projection into two or three dimensions."""
