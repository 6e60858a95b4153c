"""Settings of the report."""

from dataclasses import dataclass

from slick.errors import SettingsError
from slick.settings import identity_settings, register_settings, setting

PARAPHRASE_F1_THRESHOLD = 0.6
"""Answers with at least this F1 may be paraphrases. Two two-word names that share a surname have an F1 of 0.5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Which wrong answers are drawn for the error audit."""

    num_greedy: int = 50
    num_sampled: int = 50
    seed: int = 0
    paraphrase_f1: float = PARAPHRASE_F1_THRESHOLD

    def __post_init__(self) -> None:
        if min(self.num_greedy, self.num_sampled) < 0 or self.num_greedy + self.num_sampled == 0:
            raise SettingsError(
                "an error audit needs at least one answer, and 0 or more greedy and sampled answers, got "
                f"{self.num_greedy} greedy and {self.num_sampled} sampled; the paper uses 50 and 50"
            )
        if not 0 < self.paraphrase_f1 <= 1:
            raise SettingsError(f"the F1 threshold of the error audit must be in (0, 1], got {self.paraphrase_f1}")


@register_settings("report")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Settings of the report. They do not change the measurements."""

    title: str = ""
    """Heading of the page; empty for the default."""
    num_chunks: int = 100
    """Chunks of test questions in the paired t-test."""
    seed: int = setting(0, "seed")
    """Seed of the assignment of questions to chunks, and of the wrong answers drawn for grading."""
    audit_greedy: int = 50
    """Wrong greedy answers in the grading sheet tables/error_audit.csv."""
    audit_sampled: int = 50
    """Wrong sampled answers in the grading sheet."""
    audit_f1: float = PARAPHRASE_F1_THRESHOLD
    """The grading sheet suggests `paraphrase` for answers with at least this F1 with a gold answer."""
    graded: str = setting("", "content")
    """The grading sheet with its column `grade` filled in (wrong, paraphrase, finer, coarser); the report then shows
    the share of each grade."""

    def __post_init__(self) -> None:
        if self.num_chunks < 2:
            raise SettingsError(f"num_chunks must be 2 or more for a t-test, got {self.num_chunks}; the paper uses 100")
        self.audit_plan()

    def audit_plan(self) -> AuditPlan:
        """Which wrong answers are drawn for grading."""
        return AuditPlan(
            num_greedy=self.audit_greedy, num_sampled=self.audit_sampled, seed=self.seed, paraphrase_f1=self.audit_f1
        )

    def identity(self) -> dict[str, object]:
        """All settings, because each affects the page, except the path of the grading sheet, whose content counts."""
        return identity_settings(self)
