"""Images changed so that the network answers wrongly."""
