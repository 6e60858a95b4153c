"""Annotation: answers to every question under every exemplar set, and the category of every question."""

from slick.annotation.config import AnnotateConfig
from slick.annotation.p_true import read_p_true
from slick.annotation.rescoring import RescoreConfig, rescore
from slick.annotation.step import annotate
from slick.annotation.store import read_generations
from slick.study_files import read_knowledge

__all__ = [
    "AnnotateConfig",
    "RescoreConfig",
    "annotate",
    "read_generations",
    "read_knowledge",
    "read_p_true",
    "rescore",
]
