"""What an output is evidence of: how it was made, and what of it holds the scores."""
