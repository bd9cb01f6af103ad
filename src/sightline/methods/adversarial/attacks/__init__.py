"""The attacks: norm balls, goals and losses, and one file for each family of attacks."""
