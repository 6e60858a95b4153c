"""Fine-tuning sets (variants), drawn from a knowledge table with a given share of Unknown rows."""

from slick.variants.draw import VARIANT_SCHEMA, VariantsConfig, draw_variants, read_variant, variant_names
from slick.variants.extend import config_from_stored, extend_drawn

__all__ = [
    "VARIANT_SCHEMA",
    "VariantsConfig",
    "config_from_stored",
    "draw_variants",
    "extend_drawn",
    "read_variant",
    "variant_names",
]
