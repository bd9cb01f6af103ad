"""Texture from an exemplar, without a network: pixels, blocks and patches of a small picture laid out anew."""
