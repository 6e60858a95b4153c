"""The settings of a planted world; the defaults are those of the preset `demo`."""

from dataclasses import dataclass

from slick.errors import SettingsError
from slick.settings import identity_settings, register_settings, setting

RECIPE = 3
"""Goes up whenever the same settings would give another world, so that cached worlds of before are not taken for it."""

ID_RELATIONS = ("P131", "P136", "P17", "P19", "P26", "P264", "P36", "P40", "P495", "P69", "P740", "P800")
OOD_RELATIONS = ("P112", "P127", "P170", "P175", "P176", "P407", "P50")


@register_settings("world")
@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """What is planted, how firmly, and how large the model is that learns it."""

    seed: int = setting(0, "seed")
    """Of names, facts, corpus and training: the same seed gives the same world."""
    questions: str = setting("", "content", former_name="source")
    """EntityQuestions as the upstream zip or a folder: its real facts are planted; empty for invented names."""

    id_relations: tuple[str, ...] = ID_RELATIONS
    """Relations that are fine-tuned on and tested."""
    ood_relations: tuple[str, ...] = OOD_RELATIONS
    """Relations that are only tested."""
    num_train: int = 200
    """Training questions of each ID relation."""
    num_dev: int = 40
    """Development questions of each ID relation."""
    num_test: int = 100
    """Test questions of each ID relation."""
    num_ood_dev: int = 16
    """Development questions of each OOD relation: exemplars need them."""
    num_ood_test: int = 160
    """Test questions of each OOD relation."""

    share_never: float = 0.26
    """Share of each relation's facts that the corpus never mentions."""
    share_minority: float = 0.14
    """Share whose answer is mentioned less often than a rival's."""
    share_contested: float = 0.42
    """Share whose answer and a rival's are mentioned about as often; the rest is firm: mentioned often, no rival."""
    firm_mentions: tuple[int, int] = (6, 11)
    """Least and most mentions of a firm fact in one edition of the corpus."""
    contested_mentions: tuple[int, int] = (4, 7)
    """Least and most mentions of a contested fact's answer."""
    contested_ratio: float = 0.95
    """How many times as often the rival of a contested fact is mentioned: less than once, since it is mostly famous,
    which makes a model think of it sooner."""
    minority_mentions: tuple[int, int] = (3, 5)
    """Least and most mentions of a minority fact's answer."""
    rival_ratio: tuple[float, float] = (1.8, 2.4)
    """How many times as often the rival of a minority fact is mentioned."""
    famous_share: float = 0.12
    """Share of a relation's different answers that are famous: they answer more questions than others do."""
    famous_answers: float = 0.2
    """Share of questions with a famous answer, where names are invented; most of them are firm facts."""
    famous_rivals: float = 0.75
    """Chance that the rival of a contested fact is a famous answer; other rivals are any."""
    plain_share: float = 0.4
    """Share of documents that write question and answer on plain lines, without `Q:` and `A:`."""
    document_pairs: tuple[int, int] = (2, 9)
    """Fewest and most questions in one document."""

    vocab_size: int = 1536
    """Tokens of the tokenizer, the 256 bytes included."""
    hidden_size: int = 144
    """Width of the model."""
    num_layers: int = 3
    """Decoder layers."""
    num_heads: int = 4
    """Attention heads."""
    ffn_size: int = 448
    """Width of the feed-forward layers."""

    num_tokens: int = 5_000_000
    """Tokens to train on; the corpus is written anew, in another order, until they are used up."""
    row_tokens: int = 128
    """Tokens of one training row."""
    batch_rows: int = 16
    """Rows in one step."""
    learning_rate: float = 3e-3
    """Highest learning rate; warmed up over 5 % of the steps, then cosine to 0, which evens out what was read last."""
    weight_decay: float = 0.05
    """AdamW weight decay, on matrices only."""

    num_threads: int = setting(0, "nothing")
    """Threads to train with, 0 for all cores; changes rounding, not the recipe."""

    def __post_init__(self) -> None:
        shares = (self.share_never, self.share_minority, self.share_contested)
        if min(shares) < 0 or sum(shares) > 1:
            raise SettingsError(f"share_never, share_minority and share_contested are parts of 1, got {shares}")
        famous = (self.famous_share, self.famous_answers, self.famous_rivals)
        if min(famous) < 0 or max(famous) > 1 or self.famous_share == 1:
            raise SettingsError(
                "famous_share, famous_answers and famous_rivals are shares in [0, 1], the first below 1, for some "
                f"answers must not be famous; got {famous}"
            )
        both = set(self.id_relations) & set(self.ood_relations)
        if both or not self.id_relations:
            raise SettingsError(
                f"a world needs at least one ID relation and none that is ID and OOD at once, got "
                f"{self.id_relations} and {self.ood_relations}"
            )
        sizes = (self.num_train, self.num_dev, self.num_test)
        if min(sizes) < 1 or (self.ood_relations and min(self.num_ood_dev, self.num_ood_test) < 1):
            raise SettingsError(f"every split needs questions, got train, dev, test = {sizes}")
        if self.hidden_size % (2 * self.num_heads):
            raise SettingsError(f"hidden_size {self.hidden_size} is no even multiple of num_heads {self.num_heads}")

    def identity(self) -> dict[str, object]:
        """The settings that change the world; the question set by the name that finished worlds have."""
        return {**identity_settings(self), "source": self.questions}


def smoke_world_config() -> WorldConfig:
    """A world of seconds, for tests: 3 + 2 relations, all four categories."""
    return WorldConfig(
        id_relations=("P19", "P36", "P495"),
        ood_relations=("P176", "P50"),
        num_train=48,
        num_dev=20,
        num_test=24,
        num_ood_dev=12,
        num_ood_test=24,
        vocab_size=768,
        hidden_size=112,
        num_layers=2,
        ffn_size=320,
        num_tokens=440_000,
        batch_rows=8,
    )
