"""A world into its folder: facts, questions, tokenizer, model. Built once for the same settings, then copied.

world/dataset/{train,dev,test}/P*.{split}.json, world/relation_query_templates.json   as EntityQuestions has them
world/model/                                                                          in Hugging Face layout
world/planted.parquet                                                                 every fact's true strength
"""

import json
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

from slick.cache import ensure_cache_folder
from slick.cluster import MALLOC_ENV
from slick.errors import ModelError
from slick.locks import exclusive_lock
from slick.questions.relations import Relation, load_relations
from slick.storage import Folder, FolderLike, as_folder
from slick.study import STARTED, Manifest, begin_step, complete_step, fingerprint, require_manifest, settings_to_json
from slick.world.config import RECIPE, WorldConfig
from slick.world.corpus import corpus_epoch
from slick.world.facts import Fact, plant_facts, planted_table, synthetic_rows
from slick.world.real import sample_real_rows, source_fingerprint

_TRAINING_ENV = {
    # Threads that wait must not spin: beside any other process, spinning makes two threads five times slower than one.
    "OMP_WAIT_POLICY": "PASSIVE",
    # transformers loads DeepSpeed to save a model, which otherwise warns that it found no GPU.
    "DS_ACCELERATOR": "cpu",
    **MALLOC_ENV,
}


def build_world(study: FolderLike, config: WorldConfig) -> Manifest:
    """Plant a world and write it into `study/world`; a world that this machine has built before is copied.

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
    # Where the source lies does not matter, what it holds does.
    identity = fingerprint(RECIPE, source, {**config.identity(), "source": ""})
    if not begin_step(folder, "world", identity, config):
        manifest = require_manifest(folder, "world")
    else:
        built = _build_or_reuse(identity, config)
        counts = json.loads((built / "counts.json").read_text())
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
    print(f"world: {manifest.counts['facts']:,} facts, {manifest.counts['strengths']}, in {folder}")
    return manifest


def _build_or_reuse(identity: str, config: WorldConfig) -> Path:
    """The folder of a built world, built now if it is not there; it appears whole or not at all."""
    target = ensure_cache_folder("worlds") / identity
    if (target / "counts.json").exists():
        print(f"world: built before, copied from {target}")
        return target
    part = Path(tempfile.mkdtemp(prefix=f".{identity}-", dir=target.parent))
    try:
        _build(part, config)
        try:
            part.rename(target)
        except OSError:
            # Another process finished the same world first; anything else is an error.
            if not (target / "counts.json").exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _build(folder: Path, config: WorldConfig) -> None:
    relations = load_relations()
    rows = sample_real_rows(config, relations) if config.questions else synthetic_rows(config)
    facts = plant_facts(rows, relations, config)
    write_dataset(folder, facts, relations)
    out = Folder(str(folder))
    out.write_table("planted.parquet", planted_table(facts))
    documents = corpus_epoch(facts, config, 0)
    spent = _train(folder, facts, documents, config)
    counts: dict[str, Any] = {
        "facts": len(facts),
        "strengths": dict(sorted(Counter(fact.strength for fact in facts).items())),
        "questions": {
            domain: dict(sorted(Counter(fact.split for fact in facts if fact.domain == domain).items()))
            for domain in ("id", "ood")
        },
        "mentions": sum(fact.num_gold + fact.num_rival for fact in facts),
        "documents": len(documents),
        "training": spent,
    }
    out.write_json("counts.json", counts)


def python_module(name: str) -> list[str]:
    """A command line that runs a module of this program; its arguments are to follow.

    The working folder is not searched for modules, as `python -m` would: a torch.py that lies there would be run as
    torch. This program is found behind all else, also where it is not installed.
    """
    run = f"import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module({name!r}, None, '__main__', True)"
    return [sys.executable, "-P", "-c", run, str(Path(__file__).parents[2])]


def write_dataset(folder: Path, facts: Sequence[Fact], relations: Mapping[str, Relation]) -> None:
    """The questions in the layout of EntityQuestions: one JSON list for each split and relation, and the templates."""
    files: dict[tuple[str, str], list[dict[str, object]]] = {}
    for fact in facts:
        row = {"question": fact.question, "answers": [fact.answer], "popularity": fact.popularity}
        files.setdefault((fact.split, fact.relation), []).append(row)
    for (split, relation), rows in files.items():
        Folder(str(folder)).child("dataset", split).write_json(f"{relation}.{split}.json", rows)
    templates = {relation: relations[relation].template for relation in sorted({fact.relation for fact in facts})}
    Folder(str(folder)).write_json("relation_query_templates.json", templates)


def _train(folder: Path, facts: Sequence[Fact], documents: Sequence[str], config: WorldConfig) -> dict[str, Any]:
    """Train in a process of its own: how threads wait and memory is kept is decided when a process starts."""
    from slick.world.tokenizer import train_tokenizer

    train_tokenizer(documents, config.vocab_size).save_pretrained(folder / "model")
    Folder(str(folder)).write_json("training.json", settings_to_json(config))
    environment = os.environ | _TRAINING_ENV
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([*python_module("slick.world.pretrain"), str(folder)], env=environment, check=False)
    if done.returncode != 0:
        raise ModelError(
            f"training the world's model stopped with exit status {done.returncode}; its output is above; a negative "
            "status is a signal (-9: killed, often for want of memory); run the step again"
        )
    spent: dict[str, Any] = json.loads((folder / "spent.json").read_text())
    for name in ("training.json", "spent.json"):
        (folder / name).unlink()
    return spent
