"""How the explorer's pages reach a reader: served on this machine, or written as files."""
