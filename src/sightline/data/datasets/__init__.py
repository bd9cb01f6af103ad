"""The images that a scan reads: folders, lists, archives, tables and dataset objects."""
