"""Content and style as losses over a network's layers."""
