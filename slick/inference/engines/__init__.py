"""The built-in engines, one module each; a module registers its engine and imports heavy libraries inside functions."""
