"""Names of units: concepts of images, scores of a unit against a concept, and checks of a name."""
