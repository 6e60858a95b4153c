"""The command line: one short module per step, and the presets."""
