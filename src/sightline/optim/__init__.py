"""The one ascent loop, its optimizers, and what keeps an image natural."""
