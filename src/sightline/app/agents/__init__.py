"""Methods for programs: JSON schemas of their parameters and recipes, and an MCP server."""
