"""Pages of HTML: the report, and what the explorer is built on."""
