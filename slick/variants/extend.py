"""Adding fine-tuning sets to a study: settings that add sets, and settings that conflict with existing sets."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import MismatchError, convert
from slick.study import Manifest, fingerprint, read_manifest
from slick.variants.config import VariantsConfig

SET_FIELDS = ("unknown_shares", "known_shares", "single_categories", "natural", "idk_shares", "concentrated_shares")
"""Settings that select the sets. None of them changes the rows of another set."""


def merge_configs(drawn: VariantsConfig, config: VariantsConfig) -> VariantsConfig:
    """Settings with the sets of both; all other settings are those of `drawn`.

    Args:
        drawn: settings of the existing sets.
        config: settings of the new sets.

    >>> merge_configs(VariantsConfig(known_shares=(0.5,)), VariantsConfig(known_shares=(0.25,))).known_shares
    (0.25, 0.5)
    """
    both: dict[str, Any] = {}
    for name in SET_FIELDS:
        old, new = getattr(drawn, name), getattr(config, name)
        if isinstance(old, bool):
            both[name] = old or new
        else:
            known = {round(100 * share) for share in old}
            more = [share for share in new if round(100 * share) not in known]
            both[name] = tuple(sorted([*old, *more])) if more else old
    phrase = drawn.idk_phrase if drawn.idk_shares else config.idk_phrase
    return replace(drawn, **both, idk_phrase=phrase)


def conflicting_settings(drawn: VariantsConfig, config: VariantsConfig) -> list[str]:
    """Names of the settings in which existing and new sets must not differ but do."""
    may_differ = {*SET_FIELDS, *(() if drawn.idk_shares and config.idk_shares else ("idk_phrase",))}
    return [
        name for name in config.__slots__ if name not in may_differ and getattr(drawn, name) != getattr(config, name)
    ]


def extend_drawn(study: Folder, config: VariantsConfig) -> VariantsConfig:
    """The settings extended by the sets that the study already holds.

    Args:
        study: its folder.
        config: settings of the new sets.

    Raises:
        StudyError: the existing sets were drawn with conflicting settings.
    """
    folder = study.child("variants")
    before = read_manifest(folder)
    drawn = None if before is None else config_from_stored(before.settings)
    if drawn is None:
        return config
    if names := conflicting_settings(drawn, config):
        old, new = (", ".join(f"{name} {getattr(settings, name)}" for name in names) for settings in (drawn, config))
        raise StudyError(
            f"{folder} holds fine-tuning sets that were drawn with {old}; the settings now have {new}, and sets of "
            "both would not be comparable: use the former settings, or choose another --out, or delete that folder and "
            f"{study.child('runs')} to draw and train all sets again"
        )
    return merge_configs(drawn, config)


def is_from_inputs(manifest: Manifest, inputs: Mapping[str, str]) -> bool:
    """True if the existing sets were drawn from these inputs, with settings that this version knows.

    Args:
        manifest: of the variants step.
        inputs: the current fingerprints.
    """
    drawn = config_from_stored(manifest.settings)
    return drawn is not None and manifest.fingerprint == fingerprint(inputs, drawn.identity())


def config_from_stored(settings: Mapping[str, Any]) -> VariantsConfig | None:
    """The settings of a manifest or study.json; None if they hold names that this version does not know.

    Raises:
        StudyError: a value is of another type.
    """
    if set(settings) - set(VariantsConfig.__slots__):
        return None
    try:
        config: VariantsConfig = convert(dict(settings), VariantsConfig, "settings of the variants step")
    except MismatchError as error:
        raise StudyError(
            f"{error}, in the study's manifest.json or study.json; the file was edited: restore it, or choose another "
            "--out"
        ) from error
    return config
