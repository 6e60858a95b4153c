"""The steps of the first run on a GPU, the roofline, and the tables of results."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.equality import MIN_P, chi_square_p
from tests.gpu.first_run import check_machine, has_failed, main, make_steps
from tests.gpu.models import Settings, make_work, random_work, split_work
from tests.gpu.roofline import PEAKS, Peak, Roofline
from tests.gpu.schedule import Results, RunError
from tests.gpu.tables import NOT_MEASURED, format_tables

BENCHMARKS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
FIRST_RUN = Path(__file__).parents[1] / "gpu" / "first_run.py"
MACHINE = {
    "device": "cuda",
    "gpu": "NVIDIA L4",
    "num_gpus": 1,
    "memory": 24e9,
    "flops": 100e12,
    "bytes": 250e9,
    "model": "",
    "questions": "",
    "versions": {"torch": "2.11.0", "deepspeed": ""},
}
ANNOTATION = {
    "questions": 200,
    "seconds": 4.0,
    "cpu_seconds": 1.0,
    "hits": 150,
    "tokens": 100_000,
    "passes": 10,
    "passed_tokens": 50_000,
    "roofline_seconds": 1.0,
    "peak_bytes": 3e9,
    "planned_bytes": 5e9,
}


def results(path: Path, **steps: dict[str, Any]) -> Results:
    return Results(path=path, machine=MACHINE, steps=steps)


def row_of(text: str, *beginning: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(beginning)} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_steps_are_in_order_of_value() -> None:
    names = [step.name for step in make_steps(4)]
    assert len(set(names)) == len(names)
    order = ["answers equal", "samples in", "annotation 135M", "training 135M", "annotation 1B", "the paper's"]
    positions = [next(i for i, name in enumerate(names) if name.startswith(beginning)) for beginning in order]
    assert positions == sorted(positions)
    for engine in ("full", "labels", "gold", "generate", "continuous", "vllm", "labels, 4 processes on a GPU"):
        assert f"annotation 135M {engine}" in names
    for stage in range(4):
        assert f"training 135M slick ZeRO {stage}, 1 GPU" in names
        assert f"training 135M slick ZeRO {stage}, 4 GPUs" in names
    assert "training 135M slick ZeRO 2 offload optimizer, 1 GPU" in names
    assert "training 135M slick ZeRO 3 offload all, 1 GPU" in names
    assert "training 8B slick ZeRO 0 LoRA 16, 1 GPU" in names


def test_steps_name_what_they_need() -> None:
    steps = {step.name: step for step in make_steps(1)}
    assert steps["annotation 135M vllm"].packages == ("vllm",)
    assert steps["training 135M slick ZeRO 2, 2 GPUs"].packages == ("deepspeed",)
    assert steps["training 135M slick ZeRO 2, 2 GPUs"].gpus == 2
    assert steps["training 8B slick ZeRO 0 LoRA 16, 1 GPU"].packages == ("deepspeed", "peft")
    assert steps["training 135M bare, 1 GPU"].packages == steps["annotation 135M full"].packages == ()


class _Model:
    """The sizes of a model with 2 layers of hidden size 4, 2 heads, 1 key head, and a vocabulary of 10."""

    def __init__(self) -> None:
        config = {"hidden_size": 4, "vocab_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.config = type("Config", (), config | {"num_key_value_heads": 1, "head_dim": 2})()
        self.config.get_text_config = lambda: self.config
        self._weights = [_Matrix(40), _Matrix(60)]

    def parameters(self) -> list["_Matrix"]:
        return self._weights

    def get_input_embeddings(self) -> Any:
        return type("Embedding", (), {"weight": self._weights[0]})()

    get_output_embeddings = get_input_embeddings

    def register_forward_pre_hook(self, hook: Any, with_kwargs: bool) -> None:
        self.hook = hook


class _Matrix:
    def __init__(self, num: int) -> None:
        self._num = num

    def dim(self) -> int:
        return 2

    def numel(self) -> int:
        return self._num

    def element_size(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("peak", "seconds"),
    [
        # 5 tokens x (2 x 60 + 4 x 2 layers x 2 heads x 2 x 3 keys) + 2 logits x 2 x 40
        (Peak(flops=1.0, bytes=1e9), 5 * (120 + 96) + 160),
        # 2 bytes x (60 + 40 weights + 2 logits x 2 x 10 + 5 tokens x 2 x 2 layers x 1 head x 2 x (1 + 3 keys))
        (Peak(flops=1e9, bytes=1.0), 2 * (100 + 40 + 5 * 8 * 4)),
        (None, 0.0),
    ],
)
def test_roofline(peak: Peak | None, seconds: float) -> None:
    roofline = Roofline(_Model(), peak, mean_length=3)
    roofline.count(tokens=5, logits=2)
    assert (roofline.passes, roofline.tokens) == (1, 5)
    assert roofline.seconds == seconds
    roofline.clear()
    assert (roofline.passes, roofline.tokens, roofline.seconds) == (0, 0, 0.0)


def test_peaks_are_plausible() -> None:
    assert PEAKS["NVIDIA H200"] == Peak(989e12, 4.8e12)
    for peak in PEAKS.values():
        assert 50 < peak.flops / peak.bytes < 500, "operations per byte"
    assert PEAKS.get("NVIDIA GeForce GTX 1080") is None


def test_invented_questions() -> None:
    work = random_work(103)
    assert sum(len(part["ids"]) for part in work) == 103
    assert work == random_work(103), "the same in every process"
    for part in work:
        assert len(part["prefixes"]) == len(set(part["prefixes"])) == 10
        assert all(prefix.count("Q: ") == prefix.count("\nA: ") == 4 for prefix in part["prefixes"])
        assert all(suffix.startswith("Q: ") and suffix.endswith("?\nA:") for suffix in part["suffixes"])
        assert len(part["ids"]) == len(part["suffixes"]) == len(part["gold"])
    parts = split_work(work, 3)
    assert sorted(i for split in parts for part in split for i in part["ids"]) == sorted(
        i for part in work for i in part["ids"]
    )
    assert make_work(Settings(device="cuda", folder=""), 103) == work


def test_questions_of_an_archive(entity_questions: str) -> None:
    work = make_work(Settings(device="cuda", folder="", questions=entity_questions), 240)
    assert sum(len(part["ids"]) for part in work) == 240
    assert len(work) == 24
    with pytest.raises(ValueError, match=r"has \d+ train questions, expected 10000000"):
        make_work(Settings(device="cuda", folder="", questions=entity_questions), 10_000_000)


def test_table_of_annotation(tmp_path: Path) -> None:
    done = {"status": "done", "seconds": 9.0, "result": ANNOTATION}
    stored = results(tmp_path / "r.json", **{"annotation 135M full": done, "annotation 1B gold": done})
    text = format_tables(stored, make_steps(1))
    assert row_of(text, "135M", "full")[2:] == [
        *("50", "8,500", "25,000", "5,000", "25%", "25%", "0.75"),
        *("3.0", "5.0"),
    ]
    assert row_of(text, "1B", "gold")[2:5] == ["50", "-", "-"]
    assert row_of(text, "8B", "full")[2:] == [NOT_MEASURED] * 9
    unknown_peak = {key: value for key, value in ANNOTATION.items() if key != "roofline_seconds"}
    stored.steps["annotation 135M full"] = done | {"result": unknown_peak}
    assert row_of(format_tables(stored, make_steps(1)), "135M", "full")[6] == "not given"


def test_table_of_training(tmp_path: Path) -> None:
    stored = results(
        tmp_path / "r.json",
        **{
            "training 135M bare, 1 GPU": {"status": "done", "result": {"tokens": 1000, "seconds": 2.0}},
            "training 135M slick ZeRO 2 offload optimizer, 1 GPU": {
                "status": "done",
                "result": {"tokens": 3000, "seconds": 2.0, "peak_bytes": 1.5e9, "planned_bytes": 2e9},
            },
        },
    )
    text = format_tables(stored, make_steps(1))
    assert row_of(text, "135M", "bare", "1")[3:] == ["500", "1.00", "-", "-"]
    assert row_of(text, "135M", "slick ZeRO 2 offload optimizer", "1")[3:] == ["1,500", "3.00", "1.5", "2.0"]
    assert row_of(text, "135M", "slick ZeRO 3", "2")[3:] == [NOT_MEASURED] * 4


@pytest.mark.parametrize(("questions", "kind"), [(50_000, "extrapolated"), (98_029, "measured")])
def test_table_of_the_papers_questions(questions: int, kind: str, tmp_path: Path) -> None:
    result = {"questions": questions, "total": 98_029, "seconds": 500.0, "total_seconds": 500.0 * 98_029 / questions}
    stored = results(
        tmp_path / "r.json", **{"the paper's questions": {"status": "stopped", "reason": "x", "result": result}}
    )
    row = row_of(format_tables(stored, make_steps(1)), "135M", f"{questions:,} of 98,029")
    assert row[-1] == f"{result['total_seconds'] / 3600:.3g} h ({kind})"


def test_what_was_not_reached_is_listed_with_the_reason(tmp_path: Path) -> None:
    stored = results(
        tmp_path / "r.json",
        **{
            "annotation 135M full": {"status": "done", "result": ANNOTATION},
            "annotation 135M vllm": {"status": "not reached", "reason": "vllm is not installed"},
            "annotation 1B full": {"status": "failed", "reason": "OutOfMemoryError"},
        },
    )
    text = format_tables(stored, make_steps(1)).split("Not reached:")[1]
    assert "annotation 135M full:" not in text
    assert "- annotation 135M vllm: not reached: vllm is not installed" in text
    assert "- annotation 1B full: failed: OutOfMemoryError" in text
    assert "- the paper's questions: not reached: not run" in text


def test_differing_answers_fail_the_run(tmp_path: Path) -> None:
    check = {"check": "llama", "greedy": 0.5, "sampled": 1.0, "labels": 1.0, "error": 0.0, "passed": False}
    entry = {"status": "done", "result": {"rows": [check], "passed": False}}
    stored = results(tmp_path / "r.json", **{"answers equal the CPU's": entry})
    assert has_failed(stored)
    assert row_of(format_tables(stored, make_steps(1)), "answers equal the CPU's", "llama")[-1] == "**differs**"
    entry["result"] = {"rows": [check | {"passed": True}], "passed": True}
    assert not has_failed(stored)
    stored.steps["annotation 135M full"] = {"status": "failed", "reason": "x"}
    assert has_failed(stored)


def test_results_of_another_machine_are_refused(tmp_path: Path) -> None:
    stored = results(tmp_path / "r.json")
    check_machine(stored, {**MACHINE, "gpu": "NVIDIA H200"})  # nothing has been measured yet
    stored.steps["annotation 135M full"] = {"status": "done", "result": ANNOTATION}
    check_machine(stored, MACHINE)
    with pytest.raises(RunError, match=r"has results of \{'gpu': 'NVIDIA L4'\}, this run is of .*give another --out"):
        check_machine(stored, {**MACHINE, "gpu": "NVIDIA H200"})


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert main(["--table", str(path)]) == 2
    assert "there is no such file" in capsys.readouterr().err
    path.write_text("{}")
    assert main(["--table", str(path)]) == 2
    assert "does not contain results" in capsys.readouterr().err
    path.write_text(json.dumps({"machine": MACHINE, "steps": {}}))
    assert main(["--table", str(path)]) == 0
    assert "1 x NVIDIA L4, 24 GB each; torch 2.11.0" in capsys.readouterr().out
    assert main(["--out", str(path), "--device", "cpu", "--questions", str(tmp_path / "none.zip")]) == 2
    assert "none.zip: there is no such file or folder" in capsys.readouterr().err
    for arguments in ([], ["--out", "a", "--table", "b"], ["--out", "a", "--minutes", "0"]):
        with pytest.raises(SystemExit):
            main(arguments)


def test_docs_have_a_row_for_every_step() -> None:
    """Rows without a result say `not measured` in all other cells."""
    text = BENCHMARKS.read_text(encoding="utf-8")
    assert "python -m tests.gpu.first_run --minutes 10 --out results.json" in text
    for flag in re.findall(r"--[a-z]+", " ".join(re.findall(r"python -m tests\.gpu\.first_run(.*)", text))):
        assert f'"{flag}"' in FIRST_RUN.read_text(encoding="utf-8")
    rows = [line for line in format_tables(Results(path=Path("none")), make_steps(1)).splitlines() if line[:1] == "|"]
    assert len(rows) > len(make_steps(1))
    for row in rows:
        names = row.split(NOT_MEASURED)[0]
        assert any(line.startswith(names) for line in text.splitlines()), f"docs/benchmarks.md has no row {names}"


def test_chi_square_tells_distributions_apart() -> None:
    expected = [{"a": 0.5, "b": 0.3, "c": 0.2}, {"d": 0.999, "e": 0.001}]
    even = [Counter(a=500, b=300, c=200), Counter(d=1000)]
    assert chi_square_p(even, expected) > 0.99
    assert chi_square_p([Counter(a=520, b=290, c=190), Counter(d=999, e=1)], expected) > 0.05
    assert chi_square_p([Counter(a=600, b=250, c=150), Counter(d=1000)], expected) < MIN_P
    assert chi_square_p([even[0], Counter(d=999, x=1)], expected) == 0, "a text without a probability"
