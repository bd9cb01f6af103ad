"""Videos and animations: reading frame by frame, writing, and how they are shown."""
