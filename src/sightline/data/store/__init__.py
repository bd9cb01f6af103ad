"""What a scan keeps on disk, and everything that reads or writes it."""
