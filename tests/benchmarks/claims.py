"""How often labels of claims are right: a model is pretrained on biographies, and biographies are curated.

Each sentence of a curated biography is a planted fact: the corpus of the model states it often (firm), never mentions
it (never), only states another answer (contradicted), or states both equally often (contested). The first is Known and
the next two are Unknown by construction.

python -m tests.benchmarks.claims
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from slick.annotation import AnnotateConfig
from slick.annotation.store import read_generations
from slick.curation.step import curate
from slick.datasets.relations import load_relations
from slick.inference.base import SamplingConfig
from slick.matching import FIRST_SENTENCE, make_matcher
from slick.report.statistics.intervals import wilson_interval
from slick.rng import derive_seed
from slick.types import Category, categories
from slick.world.config import WorldConfig
from slick.world.corpus import corpus_epoch, train_tokenizer
from slick.world.facts import Fact, plant_facts, synthetic_rows
from slick.world.pretrain import pretrain

SENTENCES = {
    "P19": "{} was born in {}.",
    "P69": "{} studied at {}.",
    "P26": "{} married {}.",
    "P800": "{} is known for {}.",
    "P40": "{} is a parent of {}.",
}
"""Relation -> its sentence, in the order of a biography."""
MIN_SENTENCES = 3
COPIES = 4
"""Biographies of each person in one epoch of the corpus."""
MATCHERS = ("names", "exact", "contains", "f1>=0.6", "f1>=0.8")
TRUTH = {"firm": False, "never": True, "contradicted": True}
"""Whether facts of a strength are Unknown; contested ones may be either."""


def world_config(num_people: int, num_tokens: int, seed: int) -> WorldConfig:
    """A world of people, half of whose facts are firm."""
    return WorldConfig(
        seed=seed,
        id_relations=tuple(SENTENCES),
        ood_relations=(),
        num_train=num_people,
        num_dev=1,
        num_test=1,
        share_never=0.25,
        share_minority=0.15,
        share_contested=0.1,
        famous_rivals=0.0,
        firm_mentions=(3, 5),
        contested_mentions=(2, 4),
        minority_mentions=(3, 5),
        vocab_size=768,
        hidden_size=112,
        num_layers=2,
        ffn_size=320,
        num_tokens=num_tokens,
        row_tokens=384,
        batch_rows=4,
    )


def plant_biographies(config: WorldConfig) -> dict[str, list[Fact]]:
    """Person -> three to five facts. The answers of facts that would be minority ones are never stated."""
    rows = synthetic_rows(config)
    people = [subject for subject, _ in rows["P19"]["train"]]
    pairs = {
        relation: {"train": [(person, answer) for person, (_, answer) in zip(people, splits["train"], strict=True)]}
        for relation, splits in rows.items()
    }
    by_person: dict[str, list[Fact]] = {person: [] for person in people}
    for fact in plant_facts(pairs, load_relations(), config):
        is_minority = fact.strength == "minority"
        by_person[fact.subject].append(replace(fact, strength="contradicted", num_gold=0) if is_minority else fact)
    rng = np.random.default_rng(derive_seed(config.seed, "biographies"))
    for person, facts in by_person.items():
        num = int(rng.integers(MIN_SENTENCES, len(facts) + 1))
        by_person[person] = [facts[i] for i in sorted(rng.permutation(len(facts))[:num])]
    return by_person


def sentence(fact: Fact, answer: str | None) -> str:
    """The sentence that states an answer."""
    return SENTENCES[fact.relation].format(fact.subject, answer)


def biography_epoch(facts: Sequence[Fact], config: WorldConfig, number: int) -> list[str]:
    """One epoch of the corpus: lists of questions and answers as in other worlds, and documents of 2 to 4 biographies.

    A biography has the sentences of a person's stated facts.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "biographies", number))
    by_person: dict[str, list[Fact]] = {}
    for fact in facts:
        by_person.setdefault(fact.subject, []).append(fact)
    texts = []
    for _ in range(COPIES):
        for person, own in by_person.items():
            stated = [fact for fact in own if fact.num_gold + fact.num_rival]
            text = " ".join(
                sentence(
                    fact, fact.answer if rng.random() * (fact.num_gold + fact.num_rival) < fact.num_gold else fact.rival
                )
                for fact in stated
            )
            texts += [f"Q: Who is {person}?\nA: {text}"] if stated else []
    order = [texts[i] for i in rng.permutation(len(texts))]
    documents = corpus_epoch(facts, config, number)
    while order:
        size = int(rng.integers(2, 5))
        documents.append("\n".join(order[:size]))
        order = order[size:]
    return [documents[i] for i in rng.permutation(len(documents))]


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of a biography and its label."""

    fact: Fact
    place: int
    """In the biography, from 1."""
    is_unknown: bool


def claim_labels(study: Path, by_person: Mapping[str, Sequence[Fact]], matcher: str) -> list[Claim]:
    """The label of each sentence from its stored answers, by a matcher."""
    columns = ["question_id", "greedy_text", "sampled_text"]
    answers = {row["question_id"]: row for row in read_generations(study, columns).to_pylist()}
    claims = []
    for person, facts in by_person.items():
        for place, fact in enumerate(facts, 1):
            row = answers[f"{person}-sentence{place}"]
            is_unknown = label(row, sentence(fact, fact.answer), FIRST_SENTENCE + matcher) == Category.UNKNOWN
            claims.append(Claim(fact, place, is_unknown))
    return claims


def question_labels(study: Path, by_person: Mapping[str, Sequence[Fact]]) -> list[Claim]:
    """The label of each fact asked as a question of its own."""
    columns = ["question_id", "greedy_text", "sampled_text"]
    answers = {row["question_id"]: row for row in read_generations(study, columns).to_pylist()}
    return [
        Claim(fact, place, label(answers[fact.question], fact.answer, "exact") == Category.UNKNOWN)
        for facts in by_person.values()
        for place, fact in enumerate(facts, 1)
    ]


def label(row: Mapping[str, Any], gold: str, matcher: str) -> str:
    """The category of a question from its answers."""
    is_hit = make_matcher([gold], matcher).is_hit
    greedy = sum(map(is_hit, row["greedy_text"]))
    sampled = sum(is_hit(text) for texts in row["sampled_text"] for text in texts)
    return categories(np.array([greedy]), np.array([len(row["greedy_text"])]), np.array([sampled]))[0]


def score(name: str, claims: Iterable[Claim]) -> str:
    """A row of the table: precision and recall of Unknown labels, and the share of Unknown labels by strength."""
    known = [(TRUTH[claim.fact.strength], claim.is_unknown) for claim in claims if claim.fact.strength in TRUTH]
    hits = sum(truth and unknown for truth, unknown in known)
    cells = [name, str(len(known))]
    for total in (sum(unknown for _, unknown in known), sum(truth for truth, _ in known)):
        low, high = wilson_interval(hits, total) if total else (0.0, 1.0)
        cells.append(f"{100 * hits / max(1, total):.0f} ({100 * low:.0f} to {100 * high:.0f})")
    return f"| {' | '.join(cells)} |"


def share_unknown(claims: Sequence[Claim], strength: str) -> str:
    """Unknown labels among the facts of a strength."""
    own = [claim.is_unknown for claim in claims if claim.fact.strength == strength]
    return f"{strength} {100 * sum(own) / max(1, len(own)):.0f} % of {len(own)}"


def print_results(study: Path, questions: Path, by_person: Mapping[str, Sequence[Fact]]) -> None:
    """Print the table."""
    print("| labels | facts | precision of Unknown, % | recall of Unknown, % |\n|---|--:|--:|--:|")
    asked = question_labels(questions, by_person)
    print(score("each fact as a question, `exact`", asked))
    for matcher in MATCHERS:
        print(score(f"claims, `{matcher}`", claim_labels(study, by_person, matcher)))
    claims = claim_labels(study, by_person, MATCHERS[0])
    for place in range(1, len(SENTENCES) + 1):
        print(score(f"sentence {place}, `{MATCHERS[0]}`", [claim for claim in claims if claim.place == place]))
    for name, labels in (("questions", asked), ("claims", claims)):
        shares = ", ".join(share_unknown(labels, strength) for strength in (*TRUTH, "contested"))
        print(f"Unknown labels of {name}: {shares}")


def main() -> None:
    """Pretrain a model, label biographies and single facts with it, and print how often labels are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-people", type=int, default=60)
    parser.add_argument("--num-tokens", type=int, default=900_000, help="of the pretraining")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder to keep the model and the studies in; a temporary one by default")
    arguments = parser.parse_args()
    config = world_config(arguments.num_people, arguments.num_tokens, arguments.seed)
    by_person = plant_biographies(config)
    facts = [fact for own in by_person.values() for fact in own]
    with TemporaryDirectory(prefix="slick-claims-") as temporary:
        out = Path(arguments.out or temporary)
        if not (out / "model").exists():
            tokenizer = train_tokenizer(biography_epoch(facts, config, 0), config.vocab_size)
            model, statistics = pretrain(facts, tokenizer, config, biography_epoch)
            model.save_pretrained(out / "model")
            tokenizer.save_pretrained(out / "model")
            print(statistics)
        annotate = AnnotateConfig(num_shots=3, sampling=SamplingConfig(), max_actors=1)
        settings = {"model": str(out / "model"), "id_column": "id", "prompt_format": "qa", "annotate": annotate}
        biographies = [
            {
                "id": person,
                "question": f"Who is {person}?",
                "answer": " ".join(sentence(fact, fact.answer) for fact in own),
            }
            for person, own in by_person.items()
        ]
        singles = [
            {"id": fact.question, "question": fact.question, "answer": fact.answer, "relation": fact.relation}
            for fact in facts
        ]
        curate(biographies, out=out / "biographies", claims="sentences", **settings)
        curate(singles, out=out / "questions", group_by="relation", matcher="exact", **settings)
        print_results(out / "biographies", out / "questions", by_person)


if __name__ == "__main__":
    main()
