"""The prompts of the annotate step: exemplars for every question, and the columns that hold its prompt. No Ray.

Questions of one prompt group share their prefixes, one per exemplar set. The group is the relation, with two
exceptions: prompts about an exemplar itself have another exemplar in its place, and chat prompts
begin with the question's system message.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from slick.errors import DataError, StudyError
from slick.prompt_formats import Exemplar, PromptFormat
from slick.rng import derive_seed
from slick.study_files import Exemplars
from slick.types import Message

PROMPT_GROUP, SUFFIX = "prompt_group", "suffix"
"""Columns that `PromptBuilder.add_prompts` adds to questions."""


class PromptBuilder:
    """Builds the prompts of one store."""

    def __init__(
        self,
        exemplars: Exemplars,
        shots: Mapping[str, Exemplar],
        prompt_format: PromptFormat,
        *,
        substitute: bool = False,
        seed: int = 0,
    ) -> None:
        """Prepare the prefixes.

        Args:
            exemplars: relation -> its exemplar sets, as question_ids.
            shots: question and answer of these.
            prompt_format: how they become prompts.
            substitute: exemplars are annotated too, with a spare in their own place.
            seed: random seed of the spares.
        """
        self._exemplars, self._shots, self._format = exemplars, shots, prompt_format
        self._substitute = substitute
        self._sets_with = _sets_by_exemplar(exemplars) if substitute else {}
        self._spares = draw_spares(exemplars, seed) if substitute else {}
        self.prefixes: dict[str, list[str]] = {}
        """Prefixes of each prompt group seen so far, one per exemplar set."""

    def add_prompts(self, questions: pa.Table) -> pa.Table:
        """The questions with the columns `prompt_group` and `suffix`, sorted by relation, group and question_id.

        Raises:
            DataError: the format cannot express a question; the message names it.
        """
        columns = [questions[name].to_pylist() for name in ("question_id", "relation", "question")]
        columns += [_optional_column(questions, name) for name in ("context", "answer_start")]
        groups, suffixes = [], []
        for question_id, relation, question, context, start in zip(*columns, strict=True):
            try:
                group, suffix = self._prompt(question_id, relation, question, read_context(context))
                suffix += self._format.answer_start(start or "")
            except DataError as error:
                raise DataError(f"question {question_id}: {error}") from error
            groups.append(group)
            suffixes.append(suffix)
        table = questions.drop_columns([name for name in (PROMPT_GROUP, SUFFIX) if name in questions.column_names])
        table = table.append_column(PROMPT_GROUP, pa.array(groups, pa.string()))
        table = table.append_column(SUFFIX, pa.array(suffixes, pa.string()))
        return table.sort_by([(name, "ascending") for name in ("relation", PROMPT_GROUP, "question_id")])

    def check(self, question_id: str, relation: str, question: str, context: Sequence[Message]) -> None:
        """Build the prompt of one question and discard it.

        Raises:
            DataError: the format cannot express it.
        """
        self._prompt(question_id, relation, question, context)

    def _prompt(self, question_id: str, relation: str, question: str, context: Sequence[Message]) -> tuple[str, str]:
        exemplar = question_id if question_id in self._sets_with.get(relation, ()) else None
        sets = self._exemplar_sets(relation, exemplar)
        name = _group_name(relation, exemplar, self._format.shared_context(context))
        if name not in self.prefixes:
            self.prefixes[name] = [self._format.prefix(context, shots) for shots in sets]
            self._check_suffixes(name, sets, context, question)
        return name, self._format.suffix(self.prefixes[name][0], sets[0], context, question)

    def _check_suffixes(
        self, name: str, sets: Sequence[Sequence[Exemplar]], context: Sequence[Message], question: str
    ) -> None:
        """Check with the first question of a group that the suffix is the same after every exemplar set."""
        pairs = zip(self.prefixes[name], sets, strict=True)
        if len({self._format.suffix(prefix, shots, context, question) for prefix, shots in pairs}) > 1:
            raise DataError(
                "the chat template renders a question in a way that depends on the exemplars; use --prompt-format qa"
            )

    def _exemplar_sets(self, relation: str, exemplar: str | None) -> list[list[Exemplar]]:
        """The exemplar sets of a relation, without `exemplar`."""
        spares = self._spares.get(relation, [None] * len(self._exemplars[relation]))
        return [
            [self._shots[spare if spare and question_id == exemplar else question_id] for question_id in ids]
            for ids, spare in zip(self._exemplars[relation], spares, strict=True)
        ]


def _optional_column(table: pa.Table, name: str) -> list[str | None]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def _group_name(relation: str, exemplar: str | None, context: Sequence[str]) -> str:
    """The value of the column `prompt_group`: the relation, followed by a hash of what else determines the prefixes."""
    if exemplar is None and not context:
        return relation
    digest = hashlib.blake2b(json.dumps([exemplar, *context]).encode(), digest_size=8).hexdigest()
    return f"{relation}\n{digest}"  # no relation has a newline, so no other group has this name


def read_context(context: str | None) -> list[Message]:
    """The messages before a question, from the column `context`."""
    return [Message(role=message["role"], content=message["content"]) for message in json.loads(context or "[]")]


def write_context(messages: Sequence[Message]) -> str | None:
    """The column `context` of a question with these messages before it."""
    if not messages:
        return None
    return json.dumps([{"role": message.role, "content": message.content} for message in messages], ensure_ascii=False)


def draw_spares(exemplars: Exemplars, seed: int) -> dict[str, list[str]]:
    """For every exemplar set a further exemplar of the relation, which is not in the set.

    Returns:
        Relation -> question_ids, one per set. It takes the place of an exemplar in prompts about that exemplar itself.

    Raises:
        DataError: the sets of a relation have all their exemplars in common.

    >>> draw_spares({"P36": [["a", "b"], ["b", "c"]]}, seed=0)
    {'P36': ['c', 'a']}
    """
    spares = {}
    for relation, sets in exemplars.items():
        pool = sorted({question_id for ids in sets for question_id in ids})
        rng = np.random.default_rng(derive_seed(seed, "spares", relation))
        drawn = []
        for ids in sets:
            others = [question_id for question_id in pool if question_id not in ids]
            if not others:
                raise DataError(
                    f"the exemplar sets of relation {relation} have the same {len(pool)} questions, so none can "
                    "replace an exemplar in prompts about itself; add dev questions, or lower --num-shots"
                )
            drawn.append(others[int(rng.integers(len(others)))])
        spares[relation] = drawn
    return spares


def _sets_by_exemplar(exemplars: Exemplars) -> dict[str, set[str]]:
    return {relation: {question_id for ids in sets for question_id in ids} for relation, sets in exemplars.items()}


def exemplar_texts(questions: pa.Table, exemplars: Exemplars, where: str) -> dict[str, Exemplar]:
    """Question and first gold answer of every question that may be an exemplar; see `question_texts`.

    Raises:
        StudyError: the exemplar sets name a question that is not among `questions`.
    """
    texts = question_texts(questions)
    check_exemplars(exemplars, texts, where)
    return texts


def question_texts(questions: pa.Table) -> dict[str, Exemplar]:
    """Question and first gold answer by question_id; for a sentence of a longer answer, the answer up to its end."""
    columns = (questions[name].to_pylist() for name in ("question_id", "question", "answers"))
    starts = _optional_column(questions, "answer_start")
    return {
        question_id: (question, f"{start or ''}{answers[0]}")
        for question_id, question, answers, start in zip(*columns, starts, strict=True)
    }


def check_exemplars(exemplars: Exemplars, texts: Mapping[str, Exemplar], where: str) -> None:
    """Refuse exemplar sets with questions that the study lacks.

    Args:
        exemplars: the sets.
        texts: the result of `question_texts`.
        where: origin of the sets, for the message.

    Raises:
        StudyError: there is one.
    """
    if missing := [i for sets in exemplars.values() for ids in sets for i in ids if i not in texts]:
        raise StudyError(
            f"{where} names questions that the study lacks, such as {missing[:3]}; delete the folder annotate/ to "
            "annotate again, or give the exemplars of these questions"
        )


def prompts_fingerprint(prefixes: Mapping[str, Sequence[str]]) -> str:
    """A hash of all prefixes: it changes if a chat template contains the date, say."""
    content: Any = {name: list(texts) for name, texts in sorted(prefixes.items())}
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
