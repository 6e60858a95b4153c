"""Engines that turn prompts into answers: one interface for annotation and for evaluation."""
