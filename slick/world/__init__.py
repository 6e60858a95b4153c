"""The planted world: questions, and a small model that is trained on their answers with controlled strength.

config.py      settings: facts, strengths and size of the model
facts.py       invented facts, and the strength, mentions and rival of each
corpus.py      documents, tokenizer and training rows
pretrain.py    training of the model, in a separate process
build.py       the world step, with a cache of built worlds
"""

from slick.world.build import build_world
from slick.world.config import WorldConfig, smoke_world_config

__all__ = ["WorldConfig", "build_world", "smoke_world_config"]
