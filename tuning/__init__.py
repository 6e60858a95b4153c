"""Training: fine-tuning, evaluation, stopping policies, and sweeps."""
