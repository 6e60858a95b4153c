"""Curation of a user's own fine-tuning file: its rows are labelled by what a model knows, and written back."""
