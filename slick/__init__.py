"""What a model knows: questions, worlds, annotation, variants, analysis and the report."""
