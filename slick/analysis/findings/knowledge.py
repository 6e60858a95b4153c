"""E1, E2, E20, E21: the questions, the categories, and how many exemplar sets they take. Pure."""

import json
from collections.abc import Mapping
from importlib import resources

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import (
    Verdict,
    Z,
    failures,
    interval,
    minus,
    percent,
    points,
    rank_correlation,
    rounded,
    tenths,
    when_label,
)
from slick.analysis.p_true import compare, prefix_curve
from slick.analysis.terms import EARLY, LAST, NotTestable
from slick.types import Category

LEAST_SHARE = 0.01
"""A category counts as populated from this share of the questions on."""


def e1(data: StudyData, wanted: Mapping[str, Mapping[str, int]] | None = None) -> Verdict:
    """The numbers of questions are the paper's, in total and in each relation."""
    if data.audit is None:
        raise NotTestable("the paper's counts belong to the full EntityQuestions archive; these questions are not it")
    paper = paper_counts() if wanted is None else wanted
    own = {split: sum(data.audit.get(split, {}).values()) for split in paper}
    failed = []
    for split, relations in paper.items():
        found = data.audit.get(split, {})
        failed += [
            f"{split} {relation}: {found.get(relation, 0):,}, wanted {relations.get(relation, 0):,}"
            for relation in sorted({*relations, *found})
            if found.get(relation, 0) != relations.get(relation, 0)
        ]
    if len(failed) > 4:
        failed = [*failed[:4], f"and {len(failed) - 4} more"]
    good = f"all {sum(len(relations) for relations in paper.values())} numbers agree exactly"
    return Verdict(not failed, own, failures(failed, good))


def paper_counts() -> dict[str, dict[str, int]]:
    """Questions in each relation after the paper's filters: train, test and ood.

    Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3-5.
    """
    value = json.loads(resources.files("slick").joinpath("data/paper_counts.json").read_text(encoding="utf-8"))
    return {
        split: {relation: entry["total"] for relation, entry in value[split].items()}
        for split in ("train", "test", "ood")
    }


def e2(data: StudyData) -> Verdict:
    """Each category holds at least 1 % of the train and of the ID test questions."""
    own, failed = {}, []
    for split in ("train", "test"):
        counts = category_totals(data, "id", split)
        total = sum(counts.values())
        if not total:
            raise NotTestable("needs a finished knowledge table with train and test questions")
        own[split] = rounded([100 * num / total for num in counts.values()])
        failed += [
            f"{category} holds {num:,} of {total:,} {split} questions, under {percent(LEAST_SHARE)}"
            for category, num in counts.items()
            if num < max(1.0, LEAST_SHARE * total)
        ]
    good = "HighlyKnown / MaybeKnown / WeaklyKnown / Unknown: " + "; ".join(
        f"{' / '.join(f'{value:.0f}' for value in values)} % of {split}" for split, values in own.items()
    )
    return Verdict(not failed, own, failures(failed, good))


def category_totals(data: StudyData, domain: str, split: str) -> dict[str, int]:
    """Questions in each category, over all relations."""
    totals = dict.fromkeys(map(str, Category), 0)
    for (_, one_domain, one_split), counts in data.counts.items():
        if (one_domain, one_split) == (domain, split):
            for category, num in counts.items():
                totals[category] += num
    return totals


def e20(data: StudyData) -> Verdict:
    """At both checkpoints, SliCK's Unknown questions are answered right less often than as many of least P(True)."""
    found = {when: compare(data, when) for when in (EARLY, LAST)}
    said = {
        when: f"{points(one.slick)} % of SliCK's are answered right and {points(one.p_true)} % of P(True)'s, "
        f"{points(one.gap)} points apart, at {when_label(when)}"
        for when, one in found.items()
    }
    caveats = [data.p_true.caveat] if data.p_true is not None and data.p_true.caveat else []
    own: dict[str, object] = {"unknown_percent": tenths(found[EARLY].share)}
    own |= {when: rounded([one.slick.value, one.p_true.value]) for when, one in found.items()}
    return Verdict(
        all(one.gap.value < -Z * one.gap.se for one in found.values()),
        own,
        f"of {found[EARLY].num:,} test questions called Unknown by each: {'; '.join([*said.values(), *caveats])}",
        {when: interval(one.gap) for when, one in found.items()},
    )


def e21(data: StudyData) -> Verdict:
    """From one exemplar set to all, the Unknown set shrinks, and D_Natural answers less of it right, beyond noise."""
    curve = prefix_curve(data, EARLY)
    sets = [float(n) for n in range(1, len(curve) + 1)]
    shares, cells = [share for _, share, _ in curve], [cell for _, _, cell in curve]
    fall = minus(cells[0], cells[-1])
    rho = rank_correlation(sets, [cell.value for cell in cells])
    failed = []
    if not shares[-1] < shares[0]:
        failed.append("the Unknown set does not shrink")
    if fall.value <= Z * fall.se or rho >= 0:
        failed.append(
            f"accuracy on it changes by {-fall.value:+.1f} ± {fall.se:.1f} points (rank correlation {rho:+.2f})"
        )
    own = {
        "sets": [curve[0][0], curve[-1][0]],
        "unknown_percent": rounded([shares[0], shares[-1]]),
        "accuracy": rounded([cells[0].value, cells[-1].value]),
    }
    good = (
        f"from {curve[0][0]} to {curve[-1][0]} exemplar sets, Unknown falls from {shares[0]:.0f} to {shares[-1]:.0f} % "
        f"of test questions, and D_Natural's accuracy on them at early stop by {points(fall)} points"
    )
    return Verdict(not failed, own, failures(failed, good), {"fall": interval(fall)})
