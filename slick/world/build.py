"""The world step: plants invented facts, or facts of EntityQuestions, in a small model."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slick.cluster import MALLOC_ENV
from slick.datasets.relations import Relation, load_relations
from slick.datasets.sources import QuestionSource, open_source, read_rows
from slick.errors import DataError, ModelError
from slick.locks import exclusive_lock
from slick.matching import nfc
from slick.models import ensure_cache_folder
from slick.rng import derive_seed
from slick.storage import Folder, FolderLike, as_folder
from slick.study import (
    STARTED,
    Manifest,
    begin_step,
    complete_step,
    fingerprint,
    read_manifest,
    require_manifest,
    settings_to_json,
)
from slick.world.config import RECIPE, WorldConfig
from slick.world.corpus import corpus_epoch, train_tokenizer
from slick.world.facts import (
    Fact,
    SubjectAnswer,
    plant_facts,
    planted_table,
    relation_domains,
    split_sizes,
    synthetic_rows,
)

_LOG = logging.getLogger(__name__)

_TRAINING_ENV = {
    # Waiting threads must not spin: if another process runs, spinning makes two threads five times slower than one.
    "OMP_WAIT_POLICY": "PASSIVE",
    # transformers loads DeepSpeed to save a model. Without this, DeepSpeed warns that there is no GPU.
    "DS_ACCELERATOR": "cpu",
    **MALLOC_ENV,
}


def build_world(study: FolderLike, config: WorldConfig) -> Manifest:
    """Build a world in `study/world`, or copy it if this machine has built it before.

    A finished world of an earlier recipe is kept, so that studies begun with it can be continued.

    Raises:
        DataError: the real question set is damaged or too small.
        ModelError: the training process failed.
    """
    study = as_folder(study)
    with exclusive_lock(study, "world"):
        return _build_world(study, config)


def _build_world(study: Folder, config: WorldConfig) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("world")
    source = source_fingerprint(config)
    # The identity depends on the content of the source, not on its location.
    identity = fingerprint(RECIPE, source, {**config.identity(), "source": ""})
    earlier = {fingerprint(recipe, source, {**config.identity(), "source": ""}) for recipe in range(1, RECIPE)}
    finished = read_manifest(folder)
    if finished is not None and finished.fingerprint in earlier:
        _LOG.info("world: %s was built by an earlier version of this program and is kept", folder)
        return finished
    if not begin_step(folder, "world", identity, config):
        manifest = require_manifest(folder, "world")
    else:
        built = _build_or_reuse(identity, config)
        counts = Folder(str(built)).read_json("counts.json")
        inputs = {"source": source} if source else {}
        with folder.atomic_replace() as new:
            for path in sorted(path for path in built.rglob("*") if path.is_file() and path.name != "counts.json"):
                target = new.child(*path.relative_to(built).parts[:-1])
                target.write_bytes(path.name, path.read_bytes())
            new.write_json(STARTED, {"fingerprint": identity, "settings": settings_to_json(config)})
            manifest = complete_step(
                new,
                "world",
                identity,
                settings=config,
                inputs=inputs,
                counts=counts,
                started_at=started_at,
                contents={"recipe": RECIPE},
            )
    counts = manifest.counts
    _LOG.info("world: %s facts, %s, in %s", f"{counts['facts']:,}", counts["strengths"], folder)
    return manifest


def _build_or_reuse(identity: str, config: WorldConfig) -> Path:
    """The cached folder of a world. A new world is built in a temporary folder and renamed when complete."""
    target = ensure_cache_folder("worlds") / identity
    if (target / "counts.json").exists():
        _LOG.info("world: copied from the cache %s", target)
        return target
    if target.exists():  # complete worlds have counts.json, so somebody deleted it
        shutil.rmtree(target)
    new = Path(tempfile.mkdtemp(prefix=f".{identity}-", dir=target.parent))
    try:
        _build(new, config)
        try:
            new.rename(target)
        except OSError:
            # Another process may have built the same world.
            if not (target / "counts.json").exists():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return target


def _build(folder: Path, config: WorldConfig) -> None:
    relations = load_relations()
    rows = sample_real_rows(config, relations) if config.questions else synthetic_rows(config)
    facts = plant_facts(rows, relations, config)
    write_dataset(folder, facts, relations)
    out = Folder(str(folder))
    out.write_table("planted.parquet", planted_table(facts))
    documents = corpus_epoch(facts, config, 0)
    training = _train(folder, facts, documents, config)
    counts: dict[str, Any] = {
        "facts": len(facts),
        "strengths": dict(sorted(Counter(fact.strength for fact in facts).items())),
        "questions": {
            domain: dict(sorted(Counter(fact.split for fact in facts if fact.domain == domain).items()))
            for domain in ("id", "ood")
        },
        "mentions": sum(fact.num_gold + fact.num_rival for fact in facts),
        "documents": len(documents),
        "training": training,
    }
    out.write_json("counts.json", counts)


def source_fingerprint(config: WorldConfig) -> str:
    """Fingerprint of the real question set; empty if facts are invented."""
    return open_source(config.questions).fingerprint if config.questions else ""


def sample_real_rows(
    config: WorldConfig, relations: Mapping[str, Relation]
) -> dict[str, dict[str, list[SubjectAnswer]]]:
    """Rows of `config.questions` with one answer, sampled by relation and split. No subject occurs twice.

    The splits are those of the source.

    Raises:
        DataError: the source is damaged, or has too few such rows in a relation and split.
    """
    candidates = _single_answer_rows(open_source(config.questions), relations)
    used_subjects: set[str] = set()
    rows: dict[str, dict[str, list[SubjectAnswer]]] = {}
    for relation, domain in relation_domains(config).items():
        rows[relation] = {}
        for split, size in split_sizes(config, domain).items():
            # The rows are sorted by a hash, so that the draw does not depend on their order in the source.
            pool = candidates.get((relation, split), [])
            pool = sorted(pool, key=lambda row: hashlib.blake2b(repr(row).encode(), digest_size=8).digest())
            rng = np.random.default_rng(derive_seed(config.seed, "real", relation, split))
            drawn: list[SubjectAnswer] = []
            for i in rng.permutation(len(pool)):
                if len(drawn) < size and pool[i][0] not in used_subjects:
                    used_subjects.add(pool[i][0])
                    drawn.append(pool[i])
            if len(drawn) < size:
                raise DataError(
                    f"{config.questions} has {len(drawn)} usable questions (one answer, distinct subject) of relation "
                    f"{relation} in split {split}; expected {size}: lower that number, or leave the relation out"
                )
            rows[relation][split] = drawn
    return rows


def _single_answer_rows(
    source: QuestionSource, relations: Mapping[str, Relation]
) -> dict[tuple[str, str], list[SubjectAnswer]]:
    if source.layout != "entity_questions":
        raise DataError(f"{source.name} is a table; a world needs EntityQuestions, as its zip or folder")
    rows: dict[tuple[str, str], list[SubjectAnswer]] = {}
    for raw in read_rows(source):
        if raw.problem is not None or not isinstance(raw.content, dict):
            raise DataError(f"{source.name}, {raw.where}: {raw.problem}; fix the row or leave its file out")
        relation, split = nfc(str(raw.content.get("relation"))), raw.named_splits[0]
        question, answers = raw.content.get("question"), raw.content.get("answers")
        if relation not in relations or not isinstance(question, str) or not isinstance(answers, list):
            continue
        subject = relations[relation].subject(question)
        single = len(answers) == 1 and isinstance(answers[0], str) and answers[0].strip() and "\n" not in answers[0]
        if subject is not None and single and "\n" not in question:
            # The corpus has the same Unicode form as the prompts.
            rows.setdefault((relation, split), []).append((subject, nfc(answers[0])))
    return rows


def write_dataset(folder: Path, facts: Sequence[Fact], relations: Mapping[str, Relation]) -> None:
    """Write the questions in the layout of EntityQuestions: a JSON list for each split and relation, and templates."""
    files: dict[tuple[str, str], list[dict[str, object]]] = {}
    for fact in facts:
        row = {"question": fact.question, "answers": [fact.answer], "popularity": fact.popularity}
        files.setdefault((fact.split, fact.relation), []).append(row)
    for (split, relation), rows in files.items():
        Folder(str(folder)).child("dataset", split).write_json(f"{relation}.{split}.json", rows)
    templates = {relation: relations[relation].template for relation in sorted({fact.relation for fact in facts})}
    Folder(str(folder)).write_json("relation_query_templates.json", templates)


def _train(folder: Path, facts: Sequence[Fact], documents: Sequence[str], config: WorldConfig) -> dict[str, Any]:
    """Train in a separate process, because thread and memory settings take effect only at process start."""
    train_tokenizer(documents, config.vocab_size).save_pretrained(folder / "model")
    out = Folder(str(folder))
    out.write_json("training.json", settings_to_json(config))
    environment = os.environ | _TRAINING_ENV
    environment.pop("OMP_NUM_THREADS", None)
    process = subprocess.run([*python_module("slick.world.pretrain"), str(folder)], env=environment, check=False)
    if process.returncode != 0:
        raise ModelError(
            f"the training of the world's model ended with exit status {process.returncode}; see its output above. A "
            "negative status is a signal (-9: killed, often for lack of memory); run the step again"
        )
    spent: dict[str, Any] = out.read_json("spent.json")
    for name in ("training.json", "spent.json"):
        (folder / name).unlink()
    return spent


def python_module(name: str) -> list[str]:
    """A command that runs a module of this project. Arguments can be appended.

    Unlike `python -m`, it does not search the working folder for modules: a file torch.py there would be imported as
    torch. The project's own folder is searched last, so the command also works without installation.
    """
    run = f"import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module({name!r}, None, '__main__', True)"
    return [sys.executable, "-P", "-c", run, str(Path(__file__).parents[2])]
