"""Networks that make images: architectures, training, files, use."""
