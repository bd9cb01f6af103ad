"""The explorer's pages by their addresses: the one list that the server and the export walk."""
