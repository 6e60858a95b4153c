"""Readers of question files: each module registers the reader of one format, see `slick.datasets.rows`."""
