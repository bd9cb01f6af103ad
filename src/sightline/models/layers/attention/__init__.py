"""Attention inside a network: the layers that compute it, and the windows it is confined to."""
