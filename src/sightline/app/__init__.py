"""What people start: reports, recipes carried out again, and the command line."""
