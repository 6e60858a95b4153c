"""Curation of a user's own fine-tuning file: rows are labelled by what a model knows, and an edited copy is written."""
