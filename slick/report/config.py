"""Settings of the report."""

from dataclasses import dataclass

from slick.errors import SettingsError
from slick.settings import identity_settings, register_settings, setting

PARAPHRASE_F1_THRESHOLD = 0.6
"""From this F1 on an answer may be a paraphrase: half the words of two-word names, 0.5, are but a shared surname."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Which answers are drawn."""

    num_greedy: int = 50
    num_sampled: int = 50
    seed: int = 0
    paraphrase_f1: float = PARAPHRASE_F1_THRESHOLD

    def __post_init__(self) -> None:
        if min(self.num_greedy, self.num_sampled) < 0 or self.num_greedy + self.num_sampled == 0:
            raise SettingsError(
                f"an error audit takes 0 or more greedy and sampled answers, and one in all, got {self.num_greedy} and "
                f"{self.num_sampled}; the paper takes 50 and 50"
            )
        if not 0 < self.paraphrase_f1 <= 1:
            raise SettingsError(f"the F1 limit of the error audit is in (0, 1], got {self.paraphrase_f1}")


@register_settings("report")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """How the report is made; none of it changes what was measured."""

    title: str = ""
    """Heading of the page; empty for a general one."""
    num_chunks: int = 100
    """Chunks of test questions in the paired t-test."""
    seed: int = setting(0, "seed")
    """Of the shuffle before the questions are cut into chunks, and of the wrong answers drawn to be graded."""
    audit_greedy: int = 50
    """Wrong greedy answers in the sheet tables/error_audit.csv, to be graded by a person."""
    audit_sampled: int = 50
    """Wrong sampled answers in that sheet."""
    audit_f1: float = PARAPHRASE_F1_THRESHOLD
    """From this F1 with a gold answer on, the sheet asks whether an answer is a paraphrase."""
    graded: str = setting("", "content")
    """That sheet with its column `grade` filled in (wrong, paraphrase, finer, coarser): its shares are shown."""

    def __post_init__(self) -> None:
        if self.num_chunks < 2:
            raise SettingsError(f"num_chunks must be 2 or more for a t-test, got {self.num_chunks}; the paper's is 100")

        self.audit_plan()

    def audit_plan(self) -> AuditPlan:
        """Which wrong answers are drawn to be graded."""
        return AuditPlan(
            num_greedy=self.audit_greedy, num_sampled=self.audit_sampled, seed=self.seed, paraphrase_f1=self.audit_f1
        )

    def identity(self) -> dict[str, object]:
        """All settings, since each of them shows on the page; a graded sheet counts by what it says."""
        return identity_settings(self)
