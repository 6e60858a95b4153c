r"""P(True): how likely the model finds a gold answer right when it is asked about it. Pure: prompt, choices, rows.

Source: Gekhman et al. 2024, arXiv:2405.05904, section 6 and appendix J, after Kadavath et al. 2022, arXiv:2207.05221.
The paper prints the prompt; it says neither which token is scored nor whether solved examples stand before it. Here
none do, and the choices are `(A` and `(B` behind a space, as the prompt spells them: where the model goes on with a
bracket at all, it is the letter behind it that is compared. A bare ` A` would also begin an article, as in `A city`.
"""

import math
from typing import Any

from slick.matching import nfc

P_TRUE_PREFIX = "Question:"
P_TRUE_CHOICES = ("(A", "(B")
"""What may follow the prompt, behind a space: true, false."""


def p_true_suffix(question: str, proposal: str) -> str:
    r"""What follows `P_TRUE_PREFIX` in the prompt.

    >>> p_true_suffix("Where is Paris?", "France")
    ' Where is Paris?\nProposed Answer: France\nIs the proposed answer:\n\n(A) True\n(B) False\nThe proposed answer is:'
    """
    return nfc(
        f" {question}\nProposed Answer: {proposal}\nIs the proposed answer:\n\n(A) True\n(B) False\n"
        "The proposed answer is:"
    )


def p_true_row(question_id: str, log_a: float, log_b: float) -> dict[str, Any]:
    """A row of `P_TRUE_SCHEMA` from the logarithms of both probabilities, which may be too small for their ratio.

    >>> p_true_row("q", -800.0, -800.0)["p_true"]
    0.5
    """
    odds = math.exp(-abs(log_a - log_b))  # of the less likely choice
    share = 1.0 / (1.0 + odds)
    return {
        "question_id": question_id,
        "p_a": math.exp(log_a),
        "p_b": math.exp(log_b),
        "p_true": share if log_a >= log_b else odds * share,
    }
