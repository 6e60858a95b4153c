"""Markdown tables of the results of `tests.gpu.first_run`, and the list of what was not reached."""

from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.annotation import NUM_PROMPTS, NUM_SAMPLES
from tests.gpu.schedule import Results, Step

NOT_MEASURED = "not measured"
_GB = 1e9

Row = tuple[str, ...]


def format_tables(results: Results, steps: Sequence[Step]) -> str:
    """All tables. Rows of steps without a result say `not measured`."""
    parts = [_machine_text(results.machine)] if results.machine else []
    parts += [_check_table(results, steps), _annotation_table(results, steps), _training_table(results, steps)]
    parts += [_paper_table(results, steps), _not_reached(results, steps)]
    return "\n\n".join(part for part in parts if part)


def _machine_text(machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    text = f"{machine['gpu'] or 'CPU, with tiny models in place of all others'}"
    if machine["num_gpus"]:
        text = f"{machine['num_gpus']} x {text}, {machine['memory'] / _GB:,.0f} GB each"
    return (
        f"{text}; {packages}. A large product reaches {machine['flops'] / 1e12:,.3g} TFLOP/s, a large copy "
        f"{machine['bytes'] / _GB:,.0f} GB/s."
    )


def _table(header: Row, rows: Sequence[Row]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(
    results: Results, steps: Sequence[Step], runs: Sequence[str], make: Callable[[Step, Any], list[Row]]
) -> list[Row]:
    """The rows of all steps of some kinds; `make` gets None for a step without a result."""
    rows: list[Row] = []
    for step in steps:
        if step.options["run"] in runs:
            rows += make(step, results.steps.get(step.name, {}).get("result"))
    return rows


def _check_table(results: Results, steps: Sequence[Step]) -> str:
    def make(step: Step, result: Any) -> list[Row]:
        if result is None:
            return [(step.name, "", *(NOT_MEASURED,) * 2)]
        return [(step.name, row["check"], _check_text(row), _verdict(row)) for row in result["rows"]]

    header = ("check", "model", "result", "verdict")
    return _table(header, _rows(results, steps, ("compare_with_cpu", "compare_distributions"), make))


def _check_text(row: dict[str, Any]) -> str:
    if "p" in row:
        return f"chi-square p = {row['p']:.2g}"
    shares = ", ".join(f"{name} {row[name]:.1%}" for name in ("greedy", "sampled", "labels"))
    return f"equal: {shares}; error of probabilities {row['error']:.1e}"


def _verdict(row: dict[str, Any]) -> str:
    return "equal" if row["passed"] else "**differs**"


def _annotation_table(results: Results, steps: Sequence[Step]) -> str:
    header = ("model", "engine", "questions/s", "generations/s", "answer tokens/s", "tokens/pass", "roofline share")
    header += ("CPU", "greedy hits/question", "peak GB", "plan GB")

    def make(step: Step, result: Any) -> list[Row]:
        engine = step.options["engine"]
        names = (step.options["size"], step.name.removeprefix(f"annotation {step.options['size']} "))
        return [(*names, *annotation_cells(engine, result))]

    return _table(header, _rows(results, steps, ("measure_annotation", "measure_shared"), make))


def annotation_cells(engine: str, result: Any) -> Row:
    """The figures of an engine."""
    if result is None or not result.get("seconds"):
        return (NOT_MEASURED,) * 9
    speed, seconds = result["questions"] / result["seconds"], result["seconds"]
    generates = not engine.endswith("gold")
    return (
        f"{speed:,.3g}" if speed < 1000 else f"{speed:,.0f}",
        f"{speed * NUM_PROMPTS * (1 + NUM_SAMPLES):,.0f}" if generates else "-",
        f"{result['tokens'] / seconds:,.0f}" if generates else "-",
        f"{result['passed_tokens'] / result['passes']:,.0f}" if "passes" in result else "-",
        f"{result['roofline_seconds'] / seconds:.0%}" if "roofline_seconds" in result else "not given",
        f"{result['cpu_seconds'] / seconds:.0%}",
        f"{result['hits'] / result['questions']:.2f}",
        _gigabytes(result, "peak_bytes"),
        _gigabytes(result, "planned_bytes"),
    )


def _gigabytes(result: dict[str, Any], name: str) -> str:
    return f"{result[name] / _GB:,.1f}" if name in result else "-"


def _training_table(results: Results, steps: Sequence[Step]) -> str:
    bare = {
        (step.options["size"], step.options["gpus"]): _tokens_per_second(results.steps.get(step.name, {}).get("result"))
        for step in steps
        if step.options["run"] == "measure_training" and step.options["method"] == "bare"
    }

    def make(step: Step, result: Any) -> list[Row]:
        speed = _tokens_per_second(result)
        name = step.name.removeprefix(f"training {step.options['size']} ").rsplit(",", 1)[0]
        names = (step.options["size"], name, str(step.options["gpus"]))
        if speed is None:
            return [(*names, *(NOT_MEASURED,) * 4)]
        base = bare.get((step.options["size"], step.options["gpus"]))
        ratio = f"{speed / base:.2f}" if base else "-"
        return [(*names, f"{speed:,.0f}", ratio, _gigabytes(result, "peak_bytes"), _gigabytes(result, "planned_bytes"))]

    header = ("model", "method", "GPUs", "tokens/s", "relative to bare", "peak GB", "plan GB")
    return _table(header, _rows(results, steps, ("measure_training",), make))


def _tokens_per_second(result: Any) -> float | None:
    return result["tokens"] / result["seconds"] if result and result.get("seconds") else None


def _paper_table(results: Results, steps: Sequence[Step]) -> str:
    def make(step: Step, result: Any) -> list[Row]:
        if result is None:
            return [(step.options["size"], *(NOT_MEASURED,) * 4)]
        is_whole = result["questions"] >= result["total"]
        hours = result["total_seconds"] / 3600
        return [
            (
                step.options["size"],
                f"{result['questions']:,} of {result['total']:,}",
                f"{result['seconds']:,.0f}",
                f"{result['questions'] / result['seconds']:,.1f}",
                f"{hours:.3g} h ({'measured' if is_whole else 'extrapolated'})",
            )
        ]

    header = ("model", "the paper's questions, labels mode", "seconds", "questions/s", "all questions on one GPU")
    return _table(header, _rows(results, steps, ("measure_paper",), make))


def _not_reached(results: Results, steps: Sequence[Step]) -> str:
    """What has no result or only a part of it, and why."""
    lines = []
    for step in steps:
        entry = results.steps.get(step.name, {"status": "not reached", "reason": "not run"})
        if entry["status"] != "done":
            lines.append(f"- {step.name}: {entry['status']}: {entry['reason']}")
    return "Not reached:\n\n" + "\n".join(lines) if lines else ""
