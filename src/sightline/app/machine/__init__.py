"""The machine that Sightline runs on: its packages and devices, its cache, how it is shared."""
