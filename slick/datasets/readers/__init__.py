"""Readers of question files, one module a format."""
