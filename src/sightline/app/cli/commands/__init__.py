"""The commands that are not made from a method's declaration."""
