"""What went wrong and why: two networks compared, groups of mistakes, and units turned off."""
