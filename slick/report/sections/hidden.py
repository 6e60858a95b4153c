"""What lies behind Unknown: questions whose gold answer the model ranks correctly, although it never generates it."""

from collections.abc import Mapping

from slick.report.data import StudyData
from slick.report.measurements import round1, value_or_reason
from slick.report.page import (
    GROUP_EXTENSIONS,
    Exhibit,
    SectionBody,
    figure_exhibit,
    linked_table_exhibit,
    table_exhibit,
)
from slick.report.sections import section
from slick.report.sections.hidden_tables import (
    format_percent_interval,
    k_figure,
    k_table,
    planted_k,
    planted_table,
    split_table,
    spread_table,
    unknown_table,
)
from slick.report.sections.planted import load_planted
from slick.report.statistics import hidden
from slick.report.statistics.hidden import HiddenShare, Rankings
from slick.report.statistics.hidden_answers import HiddenData, load_hidden
from slick.types import Category

_NO_STUDY = HiddenData(
    spread_missing="needs the stored answers of a study", rankings_missing="needs the stored answers of a study"
)


@section("hidden", title="What lies behind Unknown", group=GROUP_EXTENSIONS, order=135, experiment="hidden")
def hidden_section(data: StudyData) -> SectionBody:
    """Entropy, agreement, ranks of right answers, the split of the Unknown questions, and a check on planted facts."""
    loaded = data.load_cached(load_hidden, _NO_STUDY)
    strengths = planted_strengths(data)
    return SectionBody(
        result=" ".join(summary_sentences(loaded, strengths)),
        text="An Unknown question was never answered correctly, which does not show that the model lacks the fact. The "
        "scores of answers may show more: K is the share of pairs of a right and a wrong answer in which the right one "
        "has the higher score (Gekhman et al. 2025, arXiv 2503.15299); ties count half. Nothing is generated for it. "
        "Of the model's own wrong answers, K of an absent fact is below 50 %, since the model chose them. Distractors "
        "are the gold answers of other questions of the relation, never generated for an Unknown question: against "
        "them, K of an absent fact is 50 %. So hidden knowledge is what exceeds chance there. It includes answers that "
        "the model infers, such as a country from the form of a name.",
        exhibits=(*_exhibits(loaded), *_planted_exhibits(loaded, strengths)),
    )


def _exhibits(loaded: HiddenData) -> tuple[Exhibit, ...]:
    return (
        figure_exhibit(
            "K of the gold answer against distractors by category, with 95 % intervals. Dashed: an absent fact.",
            "hidden_k",
            "Share of distractors that the gold answer outranks, by category and measure",
            lambda: k_figure(loaded.require_rankings()),
        ),
        table_exhibit(
            "The Unknown questions by each measure, in percent. Ranked correctly, never generated: 2 K - 100, the "
            "share that, ranked above all distractors, gives this K if all others are absent. Intervals hold for all "
            "tested measures at once. Above all distractors: includes those that are so by chance. Above own answers: "
            "K = 1 against the model's own wrong answers.",
            lambda: split_table(loaded.require_rankings()),
        ),
        table_exhibit(
            "K in percent by category and kind of wrong answers, with 95 % intervals over questions.",
            lambda: k_table(loaded.require_rankings()),
        ),
        table_exhibit(
            "Sampled answers by category, normalized: entropy in bits, with Miller's correction for few samples, and "
            "agreement, the share of the most frequent answer in percent. With 95 % intervals.",
            lambda: spread_table(loaded.require_spread()),
        ),
        linked_table_exhibit(
            "Each Unknown question with K of its gold answer in percent. Of absent facts, some are above all "
            "distractors by chance, one of nine with eight distractors.",
            lambda: unknown_table(loaded.require_rankings()),
        ),
    )


def _planted_exhibits(loaded: HiddenData, strengths: Mapping[str, str]) -> tuple[Exhibit, ...]:
    if not strengths:
        return ()
    return (
        table_exhibit(
            "Check on planted facts: K by log-probability in percent, by planted strength. For Unknown facts that were "
            "never planted, K against distractors must be near 50 %; for those that were planted, above.",
            lambda: planted_table(loaded.require_rankings(), strengths),
        ),
    )


def summary_sentences(loaded: HiddenData, strengths: Mapping[str, str]) -> list[str]:
    """The share of hidden knowledge by each tested measure, the check on planted facts, and what follows."""
    if loaded.rankings is None:
        return []
    rankings = loaded.rankings
    shares, reason = value_or_reason(claim_shares, rankings)
    if shares is None:
        return [f"Inconclusive: {reason}."]
    sentences = [_share_sentence(share) for share in shares]
    if not rankings.is_p_true_informative:
        sentences.append("P(True) is not tested: the model does not answer its prompt with one of the two choices.")
    sentences += check_sentences(rankings, strengths)
    return [*sentences, _advice([share.verdict for share in shares])]


def claim_shares(rankings: Rankings) -> list[HiddenShare]:
    """The split of the Unknown questions by each tested measure.

    Raises:
        InsufficientDataError: there are too few Unknown questions.
    """
    measures = hidden.claim_measures(rankings)
    return [hidden.hidden_share(rankings, measure, num_tests=len(measures)) for measure in measures]


def _share_sentence(share: HiddenShare) -> str:
    interval = format_percent_interval(share.share, share.low, share.high)
    subject = f"{interval} of {share.num:,} Unknown questions"
    if share.verdict == hidden.HIDDEN:
        return f"By {share.measure}, the gold answers of {subject} are ranked correctly but never generated."
    if share.verdict == hidden.NONE:
        return (
            f"By {share.measure}, hidden knowledge is at most negligible: the gold answers of {subject} are ranked "
            f"correctly beyond chance, less than {100 * hidden.NEGLIGIBLE_SHARE:.0f} %."
        )
    return (
        f"By {share.measure}, hidden knowledge is inconclusive: the gold answers of {subject} are ranked correctly "
        "beyond chance, an interval that includes 0."
    )


def _advice(verdicts: list[str]) -> str:
    if hidden.HIDDEN in verdicts:
        return (
            "So Unknown does not mean absent for all of these questions; more samples or other prompts may bring out "
            "the ranked ones. The table of Unknown questions lists them."
        )
    if set(verdicts) == {hidden.NONE}:
        return "So Unknown can be read as absent, as far as these scores tell."
    return (
        "More Unknown questions would narrow the interval: a larger question set, or a higher "
        "--annotate.hidden-questions if that limits them."
    )


def check_sentences(rankings: Rankings, strengths: Mapping[str, str]) -> list[str]:
    """Whether K is near one half for facts that were never planted, and above for those that were; empty without."""
    sentences = []
    checks = (
        ("never planted", {"never"}, "near 50 %", hidden.validate_half),
        ("planted", set(strengths.values()) - {"never"}, "above 50 %", hidden.validate_above_half),
    )
    for name, included, expected, validate in checks if strengths else ():
        statistic, reason = value_or_reason(planted_k, rankings, strengths, included, True)
        if statistic is None:
            sentences.append(f"The check on Unknown facts that were {name} is inconclusive: {reason}.")
        else:
            sentences.append(
                f"For {statistic.num:,} Unknown facts that were {name}, K against distractors is "
                f"{format_percent_interval(*statistic[:3])}, which must be {expected}: {validate(statistic)}."
            )
    return [*sentences, *_planted_share(rankings, strengths)]


def _planted_share(rankings: Rankings, strengths: Mapping[str, str]) -> list[str]:
    """The true share of the Unknown facts that were planted, which the estimates should have; empty if not known."""
    compared = rankings.mask(Category.UNKNOWN) & (rankings.num_distractors > 0)
    facts = [strengths[name] for name in rankings.question_ids[compared].tolist() if name in strengths]
    if not facts:
        return []
    share = round1(100 * sum(strength != "never" for strength in facts) / len(facts))
    return [f"In truth, {share:.1f} % of these Unknown facts were planted."]


def planted_strengths(data: StudyData) -> dict[str, str]:
    """question_id -> planted strength; empty for a model without planted facts."""
    facts = data.load_cached(load_planted, None)
    return {} if facts is None else dict(zip(facts.question_ids.tolist(), facts.strength.tolist(), strict=True))
