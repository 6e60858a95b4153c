"""The packed decoder: every distinct token of a batch of few-shot prompts is computed once."""
