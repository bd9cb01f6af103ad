"""What is optimized: pixels, a spectrum, an image with transparency."""
