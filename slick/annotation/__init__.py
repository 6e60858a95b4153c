"""Annotation: every question asked under every exemplar set, the answers kept, the questions sorted into categories."""

from slick.annotation.annotate import AnnotateConfig, annotate, questions_to_ask
from slick.annotation.generations import read_generations
from slick.annotation.knowledge import read_knowledge
from slick.annotation.rescore import RescoreConfig, rescore

__all__ = [
    "AnnotateConfig",
    "RescoreConfig",
    "annotate",
    "questions_to_ask",
    "read_generations",
    "read_knowledge",
    "rescore",
]
