"""Tests, fits and intervals that several analyses share."""
