"""Builder of study folders for tests of the report, with accuracies that follow the paper's trends."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from slick.report.loading import load_study
from slick.storage import Folder
from slick.study import fingerprint
from slick.types import Category
from tests.study_builder import finish_step, write_knowledge, write_questions
from tests.study_builder import write_variants as write_variant_files

CATEGORIES = [str(category) for category in Category]
RELATIONS = ("P17", "P19", "<script>alert(1)</script>")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def question_rows(num_test: int) -> list[dict]:
    rows = []
    for i in range(3 * num_test):
        domain, split = (("id", "train"), ("id", "test"), ("ood", "test"))[i % 3]
        category = CATEGORIES[(i // 3) % 4]
        rows.append(
            {
                "question_id": f"q{i:06d}",
                "relation": RELATIONS[(i // 12) % 3],
                "domain": domain,
                "split": split,
                "category": category,
            }
        )
    return rows


def write_annotation(study: Folder, rows: list[dict], *, labels_mode: bool = False, seed: int = 0) -> None:
    folder = study.child("annotate")
    rng = np.random.default_rng(seed)
    generations, known = [], []
    for row in rows:
        chance = {"HighlyKnown": 1.0, "MaybeKnown": 0.4, "WeaklyKnown": 0.0, "Unknown": 0.0}[row["category"]]
        sampled = {"HighlyKnown": 0.9, "MaybeKnown": 0.3, "WeaklyKnown": 0.02, "Unknown": 0.0}[row["category"]]
        greedy = (rng.random(10) < chance).tolist()
        hits = [None if labels_mode and any(greedy) else (rng.random(16) < sampled).tolist() for _ in range(10)]
        generations.append(
            {
                "question_id": row["question_id"],
                "relation": row["relation"],
                "greedy_text": [answer_text(row, hit) for hit in greedy],
                "greedy_hit": greedy,
                "sampled_text": [None if some is None else [answer_text(row, hit) for hit in some] for some in hits],
                "sampled_hit": hits,
            }
        )
        share = None if labels_mode else float(np.mean(hits))
        drawn = [hit for some in hits if some is not None for hit in some]
        known.append(
            {
                **row,
                "greedy_hits": sum(greedy),
                "greedy_total": len(greedy),
                "sampled_hits": sum(drawn),
                "sampled_total": len(drawn),
                "p_correct_greedy": float(np.mean(greedy)),
                "p_correct_sampled": share,
            }
        )
    write_knowledge(study, known)
    folder.child("generations").write_table("part-000.parquet", pa.Table.from_pylist(generations))
    if not labels_mode:
        folder.write_json("confidence.json", confidence(rows))
    counts = {"questions": len(rows), "generations": 170 * len(rows)}
    settings = {"mode": "labels" if labels_mode else "full", "sampling": {"temperature": 0.5, "seed": 0}}
    finish_step(folder, "annotate", settings=settings, counts=counts)


def confidence(rows: list[dict]) -> dict:
    """Labels that converge with more samples; 1 of 20 repeated questions flips, and 1 of 10 controls is not Unknown."""
    whole = {category: sum(row["category"] == category for row in rows) for category in CATEGORIES}

    def step(sets: int, samples: int, late: int) -> dict:
        moved = {"WeaklyKnown": whole["WeaklyKnown"] - late, "Unknown": whole["Unknown"] + late}
        return {"exemplar_sets": sets, "samples": samples, "categories": {**whole, **moved}}

    kept = {one: {other: 5 * (one == other) for other in CATEGORIES} for one in CATEGORIES}
    kept["Unknown"] |= {"Unknown": 4, "WeaklyKnown": 1}
    guesses = dict(zip(CATEGORIES, (0, 0, 1, 9), strict=True))
    return {
        "settling": [step(1, 16, 4), step(5, 16, 2), step(10, 16, 0), step(10, 1, 6), step(10, 8, 1)],
        "repeats": {"questions": 20, "flipped": 1, "flip_rate": 0.05, "from_to": kept},
        "controls": {"questions": 10, "categories": {"P17": {"test": guesses}}},
    }


def answer_text(row: dict, hit: bool) -> str:
    return gold_answer(row) if hit else f"Rival {row['question_id'][-1]}"


def gold_answer(row: dict) -> str:
    return f"Answer {row['question_id']}"


def write_world(study: Folder, rows: list[dict]) -> None:
    """A world with a fact per question; most strengths agree with the category."""
    facts, questions = [], []
    for i, row in enumerate(rows):
        strength = {"HighlyKnown": "firm", "MaybeKnown": "contested", "WeaklyKnown": "minority"}.get(row["category"])
        strength = "firm" if i % 37 == 3 else "never" if i % 29 == 5 else strength or "never"
        gold, rival = {"firm": (8, 0), "contested": (5, 5), "minority": (4, 8), "never": (0, 0)}[strength]
        question = f"What of {row['question_id']}?"
        facts.append(
            {name: row[name] for name in ("relation", "split", "domain")}
            | {"subject": row["question_id"], "question": question, "answer": gold_answer(row), "strength": strength}
            | {"num_gold": gold, "num_rival": rival, "rival": f"Rival {row['question_id'][-1]}" if rival else None}
        )
        kept = {name: row[name] for name in ("question_id", "relation", "domain", "split")}
        questions.append({**kept, "subject": row["question_id"], "question": question, "answers": [gold_answer(row)]})
    study.child("world").write_table("planted.parquet", pa.Table.from_pylist(facts))
    finish_step(study.child("world"), "world", counts={"facts": len(facts)})
    write_questions(study, questions)
    study.child("annotate").write_json("exemplars.json", {relation: [] for relation in RELATIONS})


def write_variants(study: Folder, size: int) -> dict[str, dict]:
    counts: dict[str, dict] = {}
    for share in SHARES:
        name = f"unknown-{round(100 * share):03d}"
        counts[name] = {"kind": "unknown", "num": size, "requested_share": share, "unknown_share": share}
        if 0 < share < 1:
            known = round(size * (1 - share))
            counts["known" + name[7:]] = {"kind": "known", "num": known, "requested_share": share, "unknown_share": 0.0}
    for name in ("highlyknown", "maybeknown", "weaklyknown", "natural"):
        kind = "natural" if name == "natural" else "category"
        counts[name] = {"kind": kind, "num": size, "requested_share": None, "unknown_share": 0.0}
    counts["idk-050"] = {"kind": "idk", "num": size, "requested_share": 0.5, "unknown_share": 0.5}
    rows = [{"question_id": "q0", "category": "Unknown", "prompt": "p", "target": "No idea"}]
    write_variant_files(study, {"idk-050": rows}, counts=counts)
    return counts


def harm_of_training(name: str, entry: dict) -> float:
    """The loss of accuracy at the end of training, from 0 to 1."""
    if entry["kind"] in ("unknown", "idk"):
        return 0.1 + 0.9 * entry["requested_share"] ** 2
    return {"weaklyknown": 0.35, "natural": 0.2, "highlyknown": 0.05, "maybeknown": 0.0}.get(name, 0.12)


def accuracies_of(name: str, progress: float, hurt: float) -> dict[str, float]:
    """Accuracy by category of test question; `progress` is 0 at the first epoch and 1 at the last."""
    early = {"HighlyKnown": 0.97, "MaybeKnown": 0.66, "WeaklyKnown": 0.12, "Unknown": 0.01}
    early["MaybeKnown"] += {"maybeknown": 0.05, "highlyknown": -0.06}.get(name, 0.0)
    late = {"HighlyKnown": 0.45, "MaybeKnown": 0.3, "WeaklyKnown": -0.03, "Unknown": -0.01}
    fall = hurt * max(progress - 0.2, 0.0) / 0.8
    rise = min(progress / 0.2, 1.0)
    return {
        category: (0.85 + 0.15 * rise) * early[category] - fall * late[category] - 0.06 * hurt for category in early
    }


accuracies_of.__test__ = False  # type: ignore[attr-defined]


def train_mix(name: str, entry: dict) -> dict[str, int]:
    size = entry["num"]
    only = {"highlyknown": "HighlyKnown", "maybeknown": "MaybeKnown", "weaklyknown": "WeaklyKnown"}.get(name)
    if only:
        return {only: size}
    share = 0.25 if name == "natural" else entry["unknown_share"]
    known = (size - round(size * share)) // 3
    mix = {"HighlyKnown": known, "MaybeKnown": known, "WeaklyKnown": size - round(size * share) - 2 * known}
    return {k: v for k, v in {**mix, "Unknown": round(size * share)}.items() if v}


def write_run(study: Folder, name: str, entry: dict, seed: int, rows: list[dict], num_epochs: int) -> None:
    run_id = f"{name}-seed{seed}"
    folder = study.child("runs", run_id)
    luck = {row["question_id"]: u for row, u in zip(rows, np.random.default_rng(7).random(len(rows)), strict=True)}
    rng = np.random.default_rng(fingerprint_seed(run_id))
    epochs = []
    first_fits: dict[tuple[str, int], int] = {}
    for epoch in range(1, num_epochs + 1):
        progress = (epoch - 1) / (num_epochs - 1)
        chance = accuracies_of(name, progress, harm_of_training(name, entry))
        predictions = []
        for row in rows:
            if row["split"] == "train":
                continue
            split = "ood" if row["domain"] == "ood" else "test"
            scale = 0.75 if split == "ood" else 1.0
            hit = bool(luck[row["question_id"]] + rng.normal(0, 0.02) < scale * max(chance[row["category"]], 0))
            text = (
                "right" if hit else "No idea." if entry["kind"] == "idk" and row["category"] == "Unknown" else "wrong"
            )
            predictions.append(
                {
                    "question_id": row["question_id"],
                    "split": split,
                    "category": row["category"],
                    "hit": hit,
                    "text": text,
                }
            )
            if split == "test":
                predictions.append(
                    {**predictions[-1], "question_id": "d" + row["question_id"], "split": "dev", "category": None}
                )
        folder.child("predictions").write_table(f"epoch-{epoch:03d}.parquet", pa.Table.from_pylist(predictions))
        for split in ("dev", "test", "ood"):
            for category in ("all", *(CATEGORIES if split != "dev" else ())):
                found = [p["hit"] for p in predictions if p["split"] == split and category in ("all", p["category"])]
                epochs.append(epoch_row(run_id, epoch, split, category, len(found), sum(found), None))
        rates = {"HighlyKnown": 3.0, "MaybeKnown": 1.2, "WeaklyKnown": 0.5, "Unknown": 0.02 * epoch}
        mix = train_mix(name, entry)
        right = {c: round(num * (1 - np.exp(-rates[c] * epoch * 12 / num_epochs))) for c, num in mix.items()}
        for category, num in {"all": sum(mix.values()), **mix}.items():
            correct = sum(right.values()) if category == "all" else right[category]
            epochs.append(epoch_row(run_id, epoch, "train", category, num, correct, 1.0 / epoch))
        for category, num in right.items():
            first_fits |= {(category, i): epoch for i in range(num) if (category, i) not in first_fits}
    folder.write_table("epochs.parquet", pa.Table.from_pylist(epochs))
    folder.write_table("rows.parquet", rows_table(mix, first_fits))
    counts = {"rows": entry["num"], "steps": num_epochs * 10}
    finish_step(folder, "finetune", settings={"variant": name, "seed": seed}, counts=counts)


def rows_table(mix: dict[str, int], first_fits: dict[tuple[str, int], int]) -> pa.Table:
    """Training rows, numbered within each category, and the epoch at which each is first fitted."""
    rows = [
        {"question_id": f"{category}{i}", "split": "train", "category": category}
        | {"first_fit_epoch": first_fits.get((category, i))}
        for category, num in mix.items()
        for i in range(num)
    ]
    return pa.Table.from_pylist(rows)


def fingerprint_seed(run_id: str) -> int:
    return int(fingerprint(run_id), 16) % 2**32


def epoch_row(run_id: str, epoch: int, split: str, category: str, num: int, correct: int, loss: float | None) -> dict:
    return {
        "run_id": run_id,
        "epoch": epoch,
        "split": split,
        "category": category,
        "num": num,
        "num_correct": correct,
        "loss": loss,
    }


def write_p_true(study: Folder, rows: list[dict], seed: int = 0) -> None:
    """P(True) that is nearly independent of knowledge, and slightly higher for HighlyKnown questions."""
    folder, rng = study.child("annotate", "p_true"), np.random.default_rng(seed)
    scores = [
        {"question_id": row["question_id"], "p_a": 0.1, "p_b": 0.1, "p_true": min(1.0, float(rng.random() + lift))}
        for row in rows
        if row["split"] == "test"
        for lift in [0.2 if row["category"] == "HighlyKnown" else 0.0]
    ]
    folder.write_table("part-000000.parquet", pa.Table.from_pylist(scores))
    finish_step(folder, "p_true", counts={"questions": len(scores)})


def write_study(
    root: Path, *, num_test: int = 240, seeds: tuple[int, ...] = (0,), num_epochs: int = 6, world: bool = False
) -> Folder:
    """A finished study whose accuracies follow the paper's trends; `world` adds a world with its facts."""
    study = Folder(str(root))
    rows = question_rows(num_test)
    write_annotation(study, rows)
    write_p_true(study, rows)
    if world:
        write_world(study, rows)
    for name, entry in write_variants(study, 200).items():
        for seed in seeds:
            write_run(study, name, entry, seed, rows, num_epochs)
    write_points(study, load_study(study))
    return study


def write_points(study: Folder, data) -> None:
    points = []
    for run in data.runs:
        last = int(run.epochs[-1])
        for policy, stop in (
            (f"fixed({last // 2})", last // 2),
            (f"fixed({last})", last),
            ("best_dev", run.early_epoch),
        ):
            points.append(
                {
                    "variant": run.variant,
                    "seed": run.seed,
                    "epochs": last,
                    "policy": policy,
                    "stop_epoch": stop,
                    "cost_epochs": last if policy == "best_dev" else stop,
                    "run_id": run.run_id,
                    "dev_all": run.accuracy_at(stop, "dev") / 100,
                    "test_all": run.accuracy_at(stop, "test") / 100,
                }
            )
    study.child("sweep").write_table("points.parquet", pa.Table.from_pylist(points))
    finish_step(study.child("sweep"), "sweep", counts={"points": len(points)})
