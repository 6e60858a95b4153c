"""Fine-tuning sets drawn from a knowledge table, with an audited mix."""

from slick.variants.draw import VARIANT_SCHEMA, VariantsConfig, draw_variants, read_variant, variant_names
from slick.variants.growing import stored_settings, with_drawn

__all__ = [
    "VARIANT_SCHEMA",
    "VariantsConfig",
    "draw_variants",
    "read_variant",
    "stored_settings",
    "variant_names",
    "with_drawn",
]
