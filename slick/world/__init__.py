"""The planted world: questions, and a small model into which their answers were planted at known strength.

config.py      WorldConfig: what is planted, how firmly, and the model's size
names.py       invented names
real.py        rows of the real EntityQuestions in their place
facts.py       rows to facts: strength, mentions, rival
corpus.py      facts to documents
tokenizer.py   documents to a byte-level BPE tokenizer
pretrain.py    documents to a model; run as a process of its own
build.py       all of it into study/world, by way of the cache
"""

from slick.world.build import build_world
from slick.world.config import WorldConfig, smoke_world_config

__all__ = ["WorldConfig", "build_world", "smoke_world_config"]
