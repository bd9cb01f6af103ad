"""The report: every method on one image, by one process or two."""
