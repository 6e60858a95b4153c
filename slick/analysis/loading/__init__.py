"""A study folder, read into what the analysis knows of it."""
