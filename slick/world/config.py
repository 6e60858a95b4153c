"""Settings of a planted world. The defaults are those of the preset `demo`."""

from dataclasses import dataclass

from slick.errors import SettingsError
from slick.settings import check_settings, identity_settings, register_settings, setting

RECIPE = 4
"""Version of the world. It increases if the same settings give another world, so that cached worlds are not reused."""

ID_RELATIONS = ("P131", "P136", "P17", "P19", "P26", "P264", "P36", "P40", "P495", "P69", "P740", "P800")
OOD_RELATIONS = ("P112", "P127", "P170", "P175", "P176", "P407", "P50")


@register_settings("world")
@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """Facts, strengths and training of a planted world."""

    seed: int = setting(0, "seed")
    """Seed of names, facts, corpus and training."""
    questions: str = setting("", "content", former_name="source")
    """EntityQuestions, as the upstream zip or a folder, whose facts are planted; empty for invented facts."""

    id_relations: tuple[str, ...] = ID_RELATIONS
    """Relations for fine-tuning and testing."""
    ood_relations: tuple[str, ...] = OOD_RELATIONS
    """Relations for testing only."""
    num_train: int = setting(200, minimum=1)
    """Training questions of each ID relation."""
    num_dev: int = setting(40, minimum=1)
    """Development questions of each ID relation."""
    num_test: int = setting(100, minimum=1)
    """Test questions of each ID relation."""
    num_ood_dev: int = setting(16, minimum=0)
    """Development questions of each OOD relation, from which exemplars are drawn."""
    num_ood_test: int = setting(160, minimum=0)
    """Test questions of each OOD relation."""

    share_never: float = setting(0.26, minimum=0, maximum=1)
    """Share of each relation's facts that the corpus never mentions."""
    share_minority: float = setting(0.14, minimum=0, maximum=1)
    """Share whose answer is mentioned less often than a rival answer."""
    share_contested: float = setting(0.42, minimum=0, maximum=1)
    """Share whose answer and rival are mentioned about equally often. The remaining facts are firm: mentioned often and
    without a rival."""
    firm_mentions: tuple[int, int] = setting((6, 11), minimum=1)
    """Minimum and maximum number of mentions of a firm fact in one epoch of the corpus."""
    contested_mentions: tuple[int, int] = setting((4, 7), minimum=1)
    """Minimum and maximum number of mentions of a contested fact's answer."""
    contested_ratio: float | None = setting(None, minimum=0)
    """Mentions of the rival of a contested fact per mention of its answer. By default it follows `famous_rivals`, so
    that about half of these facts are answered correctly: 1 - famous_rivals / 15, which is 0.95 in the demo and 1
    without famous rivals. Models answer with famous rivals more readily."""
    minority_mentions: tuple[int, int] = setting((3, 5), minimum=1)
    """Minimum and maximum number of mentions of a minority fact's answer."""
    rival_ratio: tuple[float, float] = setting((1.8, 2.4), minimum=0)
    """Lowest and highest number of mentions of the rival of a minority fact per mention of its answer."""
    famous_share: float = setting(0.12, minimum=0, below=1)
    """Share of a relation's distinct answers that are famous: they are the answer to more questions than others."""
    famous_answers: float = setting(0.2, minimum=0, maximum=1)
    """Share of questions with a famous answer if facts are invented. Most of these facts are firm."""
    famous_rivals: float = setting(0.75, minimum=0, maximum=1)
    """Probability that the rival of a contested fact is a famous answer. Other rivals are drawn from all answers."""
    plain_share: float = setting(0.4, minimum=0, maximum=1)
    """Share of documents that write question and answer without `Q:` and `A:`."""
    second_wording: float = setting(0.0, minimum=0, maximum=1, when=lambda values: values.get("second_wording"))
    """Share of documents that ask in the second wording of each relation (`slick wording`), so that the model knows
    facts in both. By default a fact has one wording, and the model knows it in that one alone."""
    document_pairs: tuple[int, int] = setting((2, 9), minimum=1)
    """Minimum and maximum number of questions in one document."""

    vocab_size: int = setting(1536, minimum=259)
    """Tokens of the tokenizer, including the 256 bytes."""
    hidden_size: int = setting(144, minimum=1)
    """Hidden size of the model."""
    num_layers: int = setting(3, minimum=1)
    """Decoder layers."""
    num_heads: int = setting(4, minimum=1)
    """Attention heads."""
    ffn_size: int = setting(448, minimum=1)
    """Hidden size of the feed-forward layers."""

    num_tokens: int = setting(5_000_000, minimum=1)
    """Tokens to train on, padding included, if the model memorizes at the usual pace. The learning rate begins to decay
    when the model recalls half of the firm facts, so that models of different seeds know equally much; the training
    takes between 0.4 and 1.2 times as many tokens. Each epoch writes the corpus in another order."""
    row_tokens: int = setting(128, minimum=2)
    """Tokens per training row."""
    batch_rows: int = setting(16, minimum=1)
    """Rows per step."""
    learning_rate: float = setting(3e-3, above=0)
    """Peak learning rate: linear warmup over 5 % of `num_tokens`, constant, then linear decay to 0 over 40 %."""
    weight_decay: float = setting(0.05, minimum=0)
    """AdamW weight decay of the matrices."""

    num_threads: int = setting(0, "nothing", minimum=0)
    """Threads for training, 0 for all cores. It affects rounding only."""

    def __post_init__(self) -> None:
        check_settings(self)
        shares = (self.share_never, self.share_minority, self.share_contested)
        if sum(shares) > 1:
            raise SettingsError(f"share_never, share_minority and share_contested must sum to at most 1, got {shares}")
        for name in ("firm_mentions", "contested_mentions", "minority_mentions", "rival_ratio", "document_pairs"):
            low, high = getattr(self, name)
            if low > high:
                raise SettingsError(f"{name} is a lower and an upper limit, got {low} and {high}; exchange them")
        both = set(self.id_relations) & set(self.ood_relations)
        if both or not self.id_relations:
            raise SettingsError(
                f"a world needs at least one ID relation, and no relation may be both ID and OOD, got "
                f"{self.id_relations} and {self.ood_relations}"
            )
        if self.ood_relations and min(self.num_ood_dev, self.num_ood_test) < 1:
            raise SettingsError(
                "num_ood_dev and num_ood_test must be 1 or more in a world with OOD relations, got "
                f"{self.num_ood_dev} and {self.num_ood_test}"
            )
        if self.hidden_size % (2 * self.num_heads):
            raise SettingsError(f"hidden_size {self.hidden_size} is not an even multiple of num_heads {self.num_heads}")

    @property
    def rival_mentions_ratio(self) -> float:
        """The setting `contested_ratio`, or its default."""
        return 1 - self.famous_rivals / 15 if self.contested_ratio is None else self.contested_ratio

    def identity(self) -> dict[str, object]:
        """The settings that change the world. Existing manifests call `questions` `source`."""
        return {**identity_settings(self), "contested_ratio": self.rival_mentions_ratio, "source": self.questions}


def smoke_world_config() -> WorldConfig:
    """A world that builds in seconds, for tests: 3 ID and 2 OOD relations, and facts of all four categories."""
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
