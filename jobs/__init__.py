"""The doors: one short file a step, presets, and the command line."""
