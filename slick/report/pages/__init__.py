"""The sections of the page that stand on their own: each with its figures and tables."""
