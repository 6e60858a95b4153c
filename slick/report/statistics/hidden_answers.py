"""Loading of stored answers and their scores: entropy, agreement and ranks by question."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from slick.annotation.answers import iter_answers
from slick.annotation.candidates import questions_to_rank
from slick.annotation.hidden import HIDDEN_FOLDER
from slick.matching import normalize
from slick.report.measurements import InsufficientDataError, value_or_reason
from slick.report.statistics.answer_spread import AnswerSpread, spread_of
from slick.report.statistics.hidden import Rankings, rank_answers
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_candidates, read_knowledge, read_question_rows

_REMEDY = "run `slick annotate PRESET --hidden` with the flags of the annotation"


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenData:
    """The stored answers and their scores; what is missing is None, with the reason."""

    spread: AnswerSpread | None = None
    spread_missing: str = ""
    rankings: Rankings | None = None
    rankings_missing: str = ""

    def require_spread(self) -> AnswerSpread:
        """Entropy and agreement.

        Raises:
            InsufficientDataError: the answers are not stored.
        """
        if self.spread is None:
            raise InsufficientDataError(self.spread_missing)
        return self.spread

    def require_rankings(self) -> Rankings:
        """The ranks.

        Raises:
            InsufficientDataError: the answers were not scored.
        """
        if self.rankings is None:
            raise InsufficientDataError(self.rankings_missing)
        return self.rankings


def load_hidden(study: Folder) -> HiddenData:
    """Load the answers and their scores.

    Raises:
        StudyError: a file is malformed.
    """
    manifest = read_manifest(study.child("annotate"))
    scores = read_manifest(study.child("annotate", HIDDEN_FOLDER))
    if manifest is None or scores is None or read_manifest(study.child("questions")) is None:
        return _missing(f"needs scores of the stored answers; {_REMEDY}")
    if scores.inputs.get("labels") != manifest.fingerprint:
        return _missing(f"the stored answers were scored for other labels; delete annotate/hidden and {_REMEDY}")
    knowledge = read_knowledge(study, ["question_id", "category"])
    categories = dict(zip(*(knowledge[name].to_pylist() for name in ("question_id", "category")), strict=True))
    rows = read_question_rows(study.child("questions"), ["question_id", "subject"])
    subjects = dict(zip(*(rows[name].to_pylist() for name in ("question_id", "subject")), strict=True))
    limit = int(scores.settings["hidden_questions"])
    spread, spread_missing = value_or_reason(_load_spread, study, limit, categories, subjects)
    candidates = read_candidates(study.child("annotate", HIDDEN_FOLDER)).to_pylist()
    return HiddenData(
        spread=spread,
        spread_missing=spread_missing,
        rankings=rank_answers(candidates, categories, subjects),
    )


def _missing(reason: str) -> HiddenData:
    return HiddenData(spread_missing=reason, rankings_missing=reason)


def _load_spread(
    study: Folder, limit: int, categories: Mapping[str, str], subjects: Mapping[str, str | None]
) -> AnswerSpread:
    """Entropy and agreement of the sampled answers to the questions that are ranked.

    Raises:
        InsufficientDataError: a sampled answer is not stored.
    """
    questions = questions_to_rank(study, limit)
    counts: dict[str, Counter[str]] = {}
    for row in iter_answers(study, questions["question_id"].combine_chunks()):
        texts = [text for samples in row["sampled_text"] or [] for text in samples or []]
        if not texts or None in texts:
            counts = {}
            break
        counts[row["question_id"]] = Counter(normalize(text) for text in texts)
    if not counts:
        raise InsufficientDataError("needs all sampled answers: annotate with --mode full and --estimator sampled")
    return spread_of(counts, categories, subjects)
