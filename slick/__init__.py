"""What a model knows, and how fine-tuning on new facts changes it: the Python API.

Every step is a function of a study and its settings. A study is a folder, by path or URI (`s3://BUCKET/study`); a step
reads the folders of earlier steps, writes its own, and returns its `Manifest`. A step that is finished with the same
settings is skipped; an interrupted step resumes.

    import slick

    slick.prepare_questions("studies/mine", slick.QuestionsConfig(questions="facts.jsonl", filter="none"))
    slick.annotate("studies/mine", slick.AnnotateConfig(model="ID_OR_PATH", mode="labels"))
    slick.read_knowledge("studies/mine").to_pandas()

The steps log their results at INFO: `logging.basicConfig(level="INFO", format="%(message)s")` shows them.

Names are imported when they are first used, so `import slick` loads neither torch, Ray nor pyarrow. Errors that the
user can fix are `SlickError` or a subclass.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers and editors; a test compares them with `_MODULES`
    from slick.annotation import AnnotateConfig, RescoreConfig, read_generations, read_p_true
    from slick.annotation.rescoring import rescore
    from slick.annotation.step import annotate
    from slick.annotation.wording import WordingConfig
    from slick.curation.config import CurateConfig
    from slick.curation.step import curate, curate_file
    from slick.datasets import QuestionsConfig, prepare_questions, read_questions
    from slick.errors import (
        ClusterError,
        DataError,
        EngineError,
        ModelError,
        SettingsError,
        SlickError,
        StudyError,
        VariantError,
    )
    from slick.inference.base import SamplingConfig
    from slick.report import ReportConfig, compare_studies, make_report
    from slick.storage import Folder
    from slick.study import Manifest
    from slick.study_files import read_knowledge, read_points
    from slick.types import Category, Question
    from slick.variants import VariantsConfig, draw_variants, read_variant
    from slick.world import WorldConfig, build_world
    from tuning.config import TrainConfig
    from tuning.finetune import finetune
    from tuning.grid import GridConfig, SweepConfig
    from tuning.sweep import sweep
    from tuning.wording import reword

__all__ = [
    "AnnotateConfig",
    "Category",
    "ClusterError",
    "CurateConfig",
    "DataError",
    "EngineError",
    "Folder",
    "GridConfig",
    "Manifest",
    "ModelError",
    "Question",
    "QuestionsConfig",
    "ReportConfig",
    "RescoreConfig",
    "SamplingConfig",
    "SettingsError",
    "SlickError",
    "StudyError",
    "SweepConfig",
    "TrainConfig",
    "VariantError",
    "VariantsConfig",
    "WordingConfig",
    "WorldConfig",
    "annotate",
    "build_world",
    "compare_studies",
    "curate",
    "curate_file",
    "draw_variants",
    "finetune",
    "make_report",
    "prepare_questions",
    "read_generations",
    "read_knowledge",
    "read_p_true",
    "read_points",
    "read_questions",
    "read_variant",
    "rescore",
    "reword",
    "sweep",
]

_MODULES: dict[str, tuple[str, ...]] = {
    "slick.annotation": ("AnnotateConfig", "RescoreConfig", "read_generations", "read_p_true"),
    "slick.annotation.rescoring": ("rescore",),
    "slick.annotation.step": ("annotate",),
    "slick.annotation.wording": ("WordingConfig",),
    "slick.inference.base": ("SamplingConfig",),
    "slick.errors": (
        *("ClusterError", "DataError", "EngineError", "ModelError", "SettingsError", "SlickError", "StudyError"),
        "VariantError",
    ),
    "slick.curation.config": ("CurateConfig",),
    "slick.curation.step": ("curate", "curate_file"),
    "slick.datasets": ("QuestionsConfig", "prepare_questions", "read_questions"),
    "slick.report": ("ReportConfig", "compare_studies", "make_report"),
    "slick.storage": ("Folder",),
    "slick.study": ("Manifest",),
    "slick.study_files": ("read_knowledge", "read_points"),
    "slick.types": ("Category", "Question"),
    "slick.variants": ("VariantsConfig", "draw_variants", "read_variant"),
    "slick.world": ("WorldConfig", "build_world"),
    "tuning.config": ("TrainConfig",),
    "tuning.finetune": ("finetune",),
    "tuning.sweep": ("sweep",),
    "tuning.wording": ("reword",),
    "tuning.grid": ("GridConfig", "SweepConfig"),
}
"""Module -> names of the API that it defines. Package `tuning` uses `slick`, so `slick` itself never imports it: only
the caller's first use of such a name does."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a name of the API when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
