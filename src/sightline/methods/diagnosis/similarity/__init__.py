"""How alike two networks are: their layers, units, groups of images, and answers."""
