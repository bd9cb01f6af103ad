"""The attacks: the ball an image may move in, what an attack is after, and one file for each family of steps."""
