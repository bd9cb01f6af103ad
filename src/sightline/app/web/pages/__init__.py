"""The explorer's pages: one file for each kind of page."""
