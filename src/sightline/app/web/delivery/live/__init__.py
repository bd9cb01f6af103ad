"""The live tab: what the network makes of an image while it is changed."""
