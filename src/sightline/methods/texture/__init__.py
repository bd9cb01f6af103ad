"""Texture synthesis, classical and neural."""
