"""Names of stopping policies, variants, settings and estimates in words, for readers of the page. Pure.

Files of the study keep the short names.
"""

import re
from collections.abc import Mapping

from slick.formatting import format_percent
from slick.report.data import StudyData, Variant
from slick.report.findings.categories import VARIANT_LABELS

_POLICY = re.compile(r"(fixed|best_dev|dev_highlyknown|patience|unknown_fit)(?:\(([\d.]+)(?:,([\d.]+))?\))?")
_ESTIMATES: Mapping[str, str] = {
    "r_squared": "R²",
    "over_all": "correct of all questions",
    "rows": "rows of the tables",
    "unknown_percent": "labelled Unknown, %",
}


def policy_label(policy: str) -> str:
    """A stopping policy of the sweep in words; other texts are unchanged.

    >>> [policy_label(policy) for policy in ("best_dev", "fixed(1)", "patience(3)", "unknown_fit(0.5)")]
    ['best dev accuracy', 'after 1 epoch', 'dev accuracy with patience 3', '50 % of Unknown rows fitted']
    """
    match = _POLICY.fullmatch(policy)
    if match is None:
        return policy
    kind, value, min_delta = match.groups()
    if kind == "fixed":
        return f"after {value} epoch{'' if value == '1' else 's'}" if value else "at the end of the budget"
    if kind == "patience":
        least = f", gains above {format_percent(float(min_delta), 'g')}" if min_delta else ""
        return f"dev accuracy with patience {value}{least}"
    if kind == "unknown_fit":
        return f"{format_percent(float(value))} of Unknown rows fitted"
    return {"best_dev": "best dev accuracy", "dev_highlyknown": "best dev accuracy on HighlyKnown questions"}[kind]


def settings_label(settings: str) -> str:
    """Training settings of a sweep in words.

    >>> settings_label("learning_rate=5.5e-05;dropout=0.1")
    'learning rate 5.5e-05, dropout 0.1'
    """
    return settings.replace("_", " ").replace("=", " ").replace(";", ", ")


def variant_label(variant: Variant) -> str:
    """A fine-tuning set in words.

    >>> variant_label(Variant(name="known-025", kind="known", share=0.25, num=3))
    'D_Known, 25 % Unknown rows dropped'
    """
    if variant.share is None:
        return VARIANT_LABELS.get(variant.name, variant.name)
    percent = format_percent(variant.share)
    return {
        "unknown": f"D, {percent} Unknown",
        "known": f"D_Known, {percent} Unknown rows dropped",
        "idk": f"D_IDK, {percent} relabelled",
        "concentrated": f"D, {percent} Unknown, concentrated",
        "weighted": f"D, {percent} Unknown, weighted",
        "p-correct": f"D, {percent} Unknown, weighted by P_Correct",
    }.get(variant.kind, variant.name)


def run_label(data: StudyData, variant: str, seed: int, settings: str = "") -> str:
    """A training in words; the seed is named if the study has several."""
    label = variant_label(data.variants[variant]) if variant in data.variants else variant
    several = len({run.seed for run in data.runs}) > 1
    return ", ".join(filter(None, (label, settings_label(settings), f"seed {seed}" if several else "")))


def estimate_label(key: str) -> str:
    """The name of a value or an interval of a finding in words. Symbols such as b_kn and D_Known are unchanged.

    >>> [estimate_label(key) for key in ("peak_epoch", "over_all", "b_kn", "D_Unknown - D_Known", "5.5e-05")]
    ['peak epoch', 'correct of all questions', 'b_kn', 'D_Unknown - D_Known', 'learning rate 5.5e-05']
    """
    if re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", key):
        return f"learning rate {key}"
    return _ESTIMATES.get(key) or re.sub(r"(?<!\bb)(?<!\bD)_", " ", key)
