"""Comparison of stopping policies, averaged over shares and seeds."""

from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, round1
from slick.report.page import GROUP_RECOMMENDATIONS, SectionBody, table_exhibit
from slick.report.recommendation import points_with_common_settings
from slick.report.sections import section
from slick.report.tables import Row, Table


@section("stopping", title="Stopping policies", group=GROUP_RECOMMENDATIONS, order=80, experiment="unknown_ratio")
def stopping_section(data: StudyData) -> SectionBody:
    """Every stopping policy and epoch budget of the sweep."""
    return SectionBody(
        text="Stopping policies by epoch budget, averaged over the shares and seeds of the sweep.",
        exhibits=(table_exhibit("Policies, best first.", lambda: policy_table(data)),),
    )


def policy_table(data: StudyData) -> Table:
    """Mean accuracy and epochs spent of every stopping policy and budget, for settings that were run at every share."""
    sweep = {name: share for share, name in data.sweep_variants("unknown")}
    cells: dict[tuple[str, int, str], list[tuple[float, float, float]]] = {}
    for point in points_with_common_settings(data):
        if point["variant"] in sweep and point.get("test_all") is not None:
            value = (100.0 * point["test_all"], float(point["stop_epoch"]), float(point["cost_epochs"]))
            key = (str(point["policy"]), int(point["epochs"]), point.get("settings") or "")
            cells.setdefault(key, []).append(value)
    if not cells:
        raise InsufficientDataError("needs a finished sweep")
    rows: list[Row] = []
    varied = any(settings for _, _, settings in cells)
    for (policy, budget, settings), values in cells.items():
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        rows.append((policy, budget, *(round1(mean) for mean in means), len(values), *([settings] * varied)))
    rows.sort(key=lambda row: -float(row[2] or 0))
    return Table(
        name="policies",
        columns=(
            "policy",
            "budget",
            "test accuracy (%)",
            "stops at epoch",
            "epochs spent",
            "runs",
            *["settings"] * varied,
        ),
        rows=tuple(rows),
    )
