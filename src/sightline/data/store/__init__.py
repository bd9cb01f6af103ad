"""What a scan keeps, behind one interface, and everything that reads or writes it."""
