"""How style networks are trained."""
