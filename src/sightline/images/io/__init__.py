"""Images from and to files, and those that come with Sightline."""
