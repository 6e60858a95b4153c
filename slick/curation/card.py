"""The dataset card of a curated copy: model, data, settings and counts, as a README.md next to it."""

from collections.abc import Mapping
from typing import Any

from slick.curation.config import CurateConfig
from slick.errors import StudyError
from slick.formatting import format_percent
from slick.storage import Folder
from slick.study import Manifest

MARK = "<!-- written by slick curate -->"


def card_text(
    config: CurateConfig,
    counts: Mapping[str, Any],
    changes: Mapping[str, Any],
    annotation: Manifest,
    loading: str | None,
) -> str:
    """The card, in Markdown with a YAML header. `loading`: see `DataFile.loading_code`."""
    labelled = max(1, counts["asked"])
    categories = [
        f"| {name} | {num:,} | {format_percent(num / labelled)} |" for name, num in counts["categories"].items()
    ]
    reasons = [f"| not labelled: {_cell(reason)} | {num:,} | |" for reason, num in counts["not_asked"].items()]
    return "\n".join(
        [
            f"---\ntags:\n- slick\n---\n{MARK}\n",
            f"# {Folder(changes['to']).name}\n",
            f"Rows of `{Folder(config.data).name}`, labelled by how well `{Folder(config.model).name}` knows them "
            "(SliCK, Gekhman et al. 2024, arXiv:2405.05904).\n",
            "| category | rows | of the labelled rows |\n|---|--:|--:|",
            *categories,
            *reasons,
            "",
            *_claims_sentence(counts, changes),
            f"Rows in this copy: {changes['rows']:,}. Dropped: {changes['dropped']:,}. Relabelled with "
            f"{config.idk_phrase!r}: {changes['relabelled']:,}. With a lower weight: {changes['weighted']:,}.\n",
            "| setting | value |\n|---|---|",
            f"| model | `{_cell(Folder(config.model).name)}`, fingerprint {annotation.inputs['model']} |",
            f"| data | `{_cell(Folder(config.data).name)}`, fingerprint {counts['fingerprint']} |",
            f"| Unknown rows | {config.unknown} |",
            f"| WeaklyKnown rows | {config.weakly} |",
            f"| matcher | `{counts['matcher']}` |",
            f"| prompts | {counts['prompt_format']} |",
            f"| seed | {config.seed} |",
            "",
            "Columns: `slick_category`, null if a row has no label; `slick_p_correct` and `slick_p_sampled`, shares "
            "of correct greedy answers and samples; `slick_reason`, why a row has no label.\n",
            f"```python\nfrom datasets import load_dataset, load_from_disk\n\n{loading}\n```\n"
            if loading
            else "Uncompress the file to read it with the package datasets.\n",
        ]
    )


def _claims_sentence(counts: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """How many sentences were labelled and removed; empty without `--claims`."""
    claims = counts.get("claims")
    if not claims:
        return []
    return [
        "Each sentence of a target was labelled as the continuation of the text before it (experimental): "
        f"{claims['asked']:,} sentences of {claims['rows']:,} rows, {claims['unknown']:,} of them Unknown. A row has "
        "the category of its least known sentence, and `slick_unknown_claims` is the share of Unknown ones. Sentences "
        f"removed from rows of this copy: {changes['removed_claims']:,}, from {changes['shortened']:,} rows.\n"
    ]


def write_card(copy: Folder, text: str) -> str:
    """Write the card next to a copy, or in it if the copy is a folder, and return its path.

    A README.md that slick did not write is kept; the card then has another name.
    """
    is_folder = copy.name not in copy.parent.names()
    folder = copy if is_folder else copy.parent
    name = "README.md" if _may_write(folder, "README.md") else f"{copy.name}.README.md"
    folder.write_bytes(name, text.encode())
    return f"{folder}/{name}"


def _may_write(folder: Folder, name: str) -> bool:
    if not folder.exists(name):
        return True
    try:
        return MARK in folder.read_bytes(name).decode(errors="replace")
    except (StudyError, OSError):
        return False


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
