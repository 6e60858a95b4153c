"""Limits on what is read of files that users bring: far above real question sets, far below what harms a machine.

Limits on unpacked data relate it to the bytes of the file: whoever packs a gigabyte into a kilobyte spends a kilobyte.
For scale: EntityQuestions has 220,703 rows in 72 members and unpacks from 3.6 MB to 30 MB, 8 to 1.
"""

MAX_ROWS_PER_FILE = 100_000_000
"""Rows. A question takes about 1 kB of memory, so that no machine this runs on holds more."""

MAX_VALUES_PER_BYTE = 1
"""Rows of a Parquet file, or values of one of its columns, for each byte of it: a real question takes several bytes,
repeated rows take next to none."""
FREE_VALUES = 100_000
"""Rows or values that a Parquet file of any size may have; they are read in seconds."""

MAX_UNPACK_RATIO = 100
"""Unpacked bytes for each byte of a zip or Parquet file: text packs 3 to 15 to 1, deflate gives 1,032 at most."""
FREE_UNPACKED_BYTES = 1 << 20
"""Bytes that a file of any size may unpack to; they are read in seconds."""
MAX_MEMBER_BYTES = 1 << 29
"""Unpacked bytes of one member of a zip: a Parquet or JSON member is held in memory whole."""
MAX_ARCHIVE_BYTES = 1 << 32
"""Unpacked bytes of one zip. Larger sets are read from a folder, where tables are read in parts."""
MAX_BATCH_BYTES = 1 << 26
"""Bytes of text of a Parquet file that are held in memory at a time."""

MAX_FILES = 100_000
"""Question files in a folder, or members of a zip of any kind: each costs time and memory, however small it is."""
MAX_DOCUMENT_BYTES = 1 << 29
"""Bytes of a JSON list of questions: it is held in memory whole."""
MAX_SETTINGS_BYTES = 1 << 26
"""Bytes of any other JSON file (relations, templates, config.json) or graded sheet; real ones have some kB."""
MAX_YAML_BYTES = 1 << 18
"""Bytes of a YAML file of settings: it is parsed at some 100 kB a second; the settings of a whole study have 6 kB."""

MAX_ROW_CHARS = 1 << 24
"""Characters of one row of CSV or JSONL, columns that are not used included: some sets carry whole documents."""
MAX_TEXT_CHARS = 1 << 20
"""Characters of one question, subject, relation, answer or list of answers; far more than a model's context."""
MAX_COLUMNS = 10_000
"""Columns of a table."""
MAX_JSON_DEPTH = 100
"""Lists and objects inside each other; a question set needs 3. Python itself fails at about 1,000."""
MAX_NUMBER_DIGITS = 1000
"""Digits of a whole number in JSON; Python refuses to convert more than 4,300."""

MAX_REJECTED_ROWS = 100_000
"""Bad rows that are kept for messages and for the file of `--rejects`; all are counted."""
MAX_REJECTED_CHARS = 1 << 26
"""Characters of all bad rows that are kept, written as JSON."""
MAX_REJECTED_ROW_CHARS = 10_000
"""Characters that are kept of the content of one bad row, written as JSON."""
