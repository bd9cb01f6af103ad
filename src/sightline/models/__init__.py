"""A network one can look into."""
