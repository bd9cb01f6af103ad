"""Collections of images, the pass of a network over them, the store that keeps it, and the search in it."""
