"""The command line: one command per method, generated from its declaration, and the few that are not methods."""
