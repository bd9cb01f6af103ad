"""Single units: their filters, activation maps, strongest patches and labels."""
