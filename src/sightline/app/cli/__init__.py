"""The command line: one command for each method, made from its declaration, and a few others."""
