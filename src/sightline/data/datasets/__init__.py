"""Where the images of a scan come from: folders, lists, archives, tables, dataset objects."""
