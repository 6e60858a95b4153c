"""Fine-tuning sets (variants), drawn from a knowledge table with a given share of Unknown rows."""

from slick.study_files import VARIANT_SCHEMA
from slick.variants.config import VariantsConfig, config_from_stored, variant_names
from slick.variants.draw import draw_variants, extend_drawn, read_variant

__all__ = [
    "VARIANT_SCHEMA",
    "VariantsConfig",
    "config_from_stored",
    "draw_variants",
    "extend_drawn",
    "read_variant",
    "variant_names",
]
