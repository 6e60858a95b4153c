"""Stored rows to numbers: accuracies with their errors, the linear model, significance, and the paper's findings.

Pure, but for `load`, which reads.
"""
