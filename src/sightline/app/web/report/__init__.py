"""The report as a page: its title and findings, the attributions side by side, its sections."""
