"""Question sets: read, checked, filtered, and kept as the Parquet rows that every later step reads."""

from slick.datasets.prepare import QuestionsConfig, prepare_questions, read_questions
from slick.study_files import QUESTION_SCHEMA

__all__ = ["QUESTION_SCHEMA", "QuestionsConfig", "prepare_questions", "read_questions"]
