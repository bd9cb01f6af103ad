"""A whole collection of images: neighbours and maps."""
