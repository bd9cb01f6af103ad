"""What the explorer's pages show: numbers, names and pictures, ready for the templates."""
