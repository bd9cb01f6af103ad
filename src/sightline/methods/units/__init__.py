"""Single units: their weights, maps, strongest patches and names."""
