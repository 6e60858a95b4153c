"""Limits on files from users: far above real question sets, and far below what exhausts a machine.

Limits on unpacked data are relative to the size of the file, so that a small file cannot unpack to gigabytes. For
comparison: EntityQuestions has 220,703 rows in 72 members and unpacks from 3.6 MB to 30 MB, 8 to 1.
"""

MAX_ROWS_PER_FILE = 100_000_000
"""A question takes about 1 kB of memory, so more rows would need over 100 GB."""

MAX_VALUES_PER_BYTE = 1
"""Rows of a Parquet file, or values of one of its columns, per byte of the file. A real question takes several bytes,
repeated rows take almost none."""
FREE_VALUES = 100_000
"""Rows or values that a Parquet file of any size may have. They are read in seconds."""

MAX_UNPACK_RATIO = 100
"""Unpacked bytes per byte of a zip or Parquet file. Text compresses 3 to 15 to 1; the maximum of deflate is 1,032."""
MAX_REPEATED_RATIO = 1000
"""The same for fine-tuning files, whose rows repeat system messages of several kB. They are read in batches."""
FREE_UNPACKED_BYTES = 1 << 20
"""Bytes that a file of any size may unpack to. They are read in seconds."""
MAX_MEMBER_BYTES = 1 << 29
"""Unpacked bytes of one member of a zip. A Parquet or JSON member is held in memory whole."""
MAX_ARCHIVE_BYTES = 1 << 32
"""Unpacked bytes of one zip. Larger sets are read from a folder, where tables are read in parts."""
MAX_BATCH_BYTES = 1 << 26
"""Bytes of text of a Parquet file that are held in memory at a time."""

MAX_FILES = 100_000
"""Question files in a folder, or members of a zip. Each costs time and memory, even if it is empty."""
MAX_DOCUMENT_BYTES = 1 << 29
"""Maximum bytes of a JSON list of questions, which is loaded into memory in full."""
MAX_SETTINGS_BYTES = 1 << 26
"""Bytes of any other JSON file (relations, templates, config.json) or graded sheet. Real files have some kB."""
MAX_YAML_BYTES = 1 << 18
"""Bytes of a YAML file of settings. YAML is parsed at about 100 kB/s; the settings of a whole study have 6 kB."""

MAX_ROW_CHARS = 1 << 24
"""Characters of one row of CSV or JSONL, including unused columns: some question sets contain whole documents."""
MAX_TEXT_CHARS = 1 << 20
"""Characters of one question, subject, relation, answer or list of answers, far more than a model's context."""
MAX_COLUMNS = 10_000
"""Columns of a table."""
MAX_JSON_DEPTH = 100
"""Nesting of lists and objects. A question set needs 3; Python itself fails at about 1,000."""
MAX_NUMBER_DIGITS = 1000
"""Digits of a whole number in JSON. Python refuses to convert more than 4,300."""

MAX_REJECTED_ROWS = 100_000
"""Bad rows that are kept for messages and for the file of `--rejects`. All are counted."""
MAX_REJECTED_CHARS = 1 << 26
"""Characters of all bad rows that are kept, as JSON."""
MAX_REJECTED_ROW_CHARS = 10_000
"""Characters that are kept of the content of one bad row, as JSON."""
