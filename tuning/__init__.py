"""Teaching a model, once and often: fine-tuning, evaluation, stopping policies, the sweep."""
