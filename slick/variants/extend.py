"""Sets that are asked for later: which settings add to the sets that a study holds, and which contradict them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import MismatchError, convert
from slick.study import Manifest, fingerprint, read_manifest
from slick.variants.config import VariantsConfig

SET_FIELDS = ("unknown_shares", "known_shares", "single_categories", "natural", "idk_shares", "concentrated_shares")
"""Settings that say which sets are drawn; none of them changes the rows of another set."""


def merge_configs(drawn: VariantsConfig, config: VariantsConfig) -> VariantsConfig:
    """Settings that ask for all sets of both; in everything else they are those of `drawn`.

    Args:
        drawn: by which sets were drawn.
        config: what is asked for now.

    >>> extended(VariantsConfig(known_shares=(0.5,)), VariantsConfig(known_shares=(0.25,))).known_shares
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
    """Names of the settings under which sets of both would not be of one kind."""
    free = {*SET_FIELDS, *(() if drawn.idk_shares and config.idk_shares else ("idk_phrase",))}
    return [name for name in config.__slots__ if name not in free and getattr(drawn, name) != getattr(config, name)]


def extend_drawn(study: Folder, config: VariantsConfig) -> VariantsConfig:
    """The settings with the sets that the study holds already.

    Args:
        study: its folder.
        config: what is asked for.

    Raises:
        StudyError: the sets that are there were drawn otherwise, so new ones would not be of one kind with them.
    """
    folder = study.child("variants")
    before = read_manifest(folder)
    drawn = None if before is None else config_from_stored(before.settings)
    if drawn is None:
        return config
    if names := conflicting_settings(drawn, config):
        was, now = (", ".join(f"{name} {getattr(one, name)}" for name in names) for one in (drawn, config))
        raise StudyError(
            f"{folder} holds fine-tuning sets that were drawn with {was}; now {now} is asked for, and sets of both "
            "would not be of one kind: ask with the settings as they were, or choose another --out, or delete that "
            f"folder and {study.child('runs')} to draw and train all sets again"
        )
    return merge_configs(drawn, config)


def is_from_inputs(manifest: Manifest, inputs: Mapping[str, str]) -> bool:
    """True if the sets that are there were drawn from these inputs, by rules that this version knows.

    Args:
        manifest: of the variants step.
        inputs: fingerprints, as of now.
    """
    drawn = config_from_stored(manifest.settings)
    return drawn is not None and manifest.fingerprint == fingerprint(inputs, drawn.identity())


def config_from_stored(settings: Mapping[str, Any]) -> VariantsConfig | None:
    """The settings that a manifest or study.json holds; None if another version knows more of them.

    Raises:
        StudyError: one is of another type.
    """
    if set(settings) - set(VariantsConfig.__slots__):
        return None
    try:
        found: VariantsConfig = convert(dict(settings), VariantsConfig, "settings of the variants step")
    except MismatchError as error:
        raise StudyError(
            f"{error}, in the study's manifest.json or study.json; they were changed: restore them, or choose another "
            "--out"
        ) from error
    return found
