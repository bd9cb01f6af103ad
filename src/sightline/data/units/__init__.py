"""What a scan's responses tell of each unit: how often it fires, for what, and what is like it."""
