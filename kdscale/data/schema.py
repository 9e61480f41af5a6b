"""The Parquet schemas: the one place that names the columns of every table."""

import pyarrow as pa

PASSAGES = pa.schema([("pid", pa.string()), ("text", pa.string())])
QUERIES = pa.schema([("qid", pa.string()), ("text", pa.string())])
QRELS = pa.schema([("qid", pa.string()), ("pid", pa.string()), ("grade", pa.int32())])
CANDIDATES = pa.schema(
    [("qid", pa.string()), ("pid", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]
)
# The training pairs: each training query with its positives and its sampled hard negatives.
# The rank of a negative that was drawn from all passages because the config asks for such ones.
EASY = -1
PAIRS = pa.schema(
    [
        ("pair_id", pa.int64()),
        ("qid", pa.string()),
        ("pid", pa.string()),
        ("grade", pa.int32()),  # 0 for a negative
        ("rank", pa.int32()),
        # BM25 rank, from 1; 0 where the passage was not a candidate; EASY for an easy negative
    ]
)
PAIR_SCORES = pa.schema([("pair_id", pa.int64()), ("score", pa.float32())])
SCORES = pa.schema(
    [
        ("pair_id", pa.int64()),
        ("qid", pa.string()),
        ("pid", pa.string()),
        ("score", pa.float32()),
    ]
)
# Token ids without special tokens; the pair is assembled when a batch is made.
PASSAGE_TOKENS = pa.schema([("pid", pa.string()), ("ids", pa.list_(pa.int32()))])
QUERY_TOKENS = pa.schema([("qid", pa.string()), ("ids", pa.list_(pa.int32()))])
BLOCKS = pa.schema([("ids", pa.list_(pa.int32()))])
# One row a system, split, query and measure.
METRICS = pa.schema(
    [
        ("split", pa.string()),
        ("system", pa.string()),
        ("qid", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
    ]
)
# One row a system, split, depth and measure: the mean over the judged queries when only the first
# `depth` candidates are reranked; delta and its 95 % interval: from the baseline, null for itself.
DEPTHS = pa.schema(
    [
        ("system", pa.string()),
        ("split", pa.string()),
        ("depth", pa.int32()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("delta", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
    ]
)
# One row a query of the primary split: what kind of query it is; null where it has no such value.
QUERY_FEATURES = pa.schema(
    [
        ("qid", pa.string()),
        ("length", pa.float64()),  # tokens of the rankers' tokenizer
        ("overlap", pa.float64()),  # share of its terms that its best relevant passage has
        ("idf", pa.float64()),  # mean over its terms
        ("rank", pa.float64()),  # of the first relevant candidate, by BM25
    ]
)
# One row a student, feature and bucket of queries: what the student loses there on the mean, in
# the primary measure, against the baseline. rho, p, p_holm: Spearman's correlation of feature and
# loss over all queries, the same in each bucket of a feature.
QUERY_TYPES = pa.schema(
    [
        ("system", pa.string()),
        ("feature", pa.string()),
        ("place", pa.int32()),  # of the bucket, from 0
        ("bucket", pa.string()),
        ("queries", pa.int32()),
        ("loss", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("example", pa.string()),  # the qid that loses most; null where none loses
        ("rho", pa.float64()),
        ("p", pa.float64()),
        ("p_holm", pa.float64()),
    ]
)
