"""What the pages of compare, mistakes and ablate show, written as one file or in the explorer."""
