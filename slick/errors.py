"""Everything a user can mend, as one tree.

    SlickError
      DataError       a question set, a row, or a file is not what it must be
      ModelError      a model or tokenizer cannot be loaded or driven
      EngineError     a generation failed; it is never read as an answer
      StudyError      a study folder is unfinished, or belongs to other settings
      VariantError    a fine-tuning set that the knowledge table cannot give
      SettingsError   settings that contradict each other or the machine
      ClusterError    a Ray cluster does not answer, or does not let us in

Each message says what, where, what was found, what was wanted, and how to mend it. The command line prints it in
one piece without a traceback and exits with status 2; any other exception is a defect of ours and exits with 1.
"""


class SlickError(Exception):
    """Something the user can mend."""


class DataError(SlickError):
    """A question set, a row, or a file is not what it must be."""


class ModelError(SlickError):
    """A model or tokenizer cannot be loaded or driven."""


class EngineError(SlickError):
    """A generation failed. A failure is never an answer."""


class StudyError(SlickError):
    """A study folder is unfinished, or was written by other settings."""


class VariantError(SlickError):
    """A fine-tuning set was asked for that the knowledge table cannot give."""


class SettingsError(SlickError):
    """Settings contradict each other, or ask for more than the machine has."""


class ClusterError(SlickError):
    """A Ray cluster does not answer, does not let us in, or does not know the job."""
