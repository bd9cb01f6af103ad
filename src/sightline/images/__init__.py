"""Images as tensors: reading, writing, video, transforms, colour."""
