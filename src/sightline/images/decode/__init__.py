"""Decoding of picture files, and Pillow pictures as tensors."""
