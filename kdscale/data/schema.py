"""The Parquet schemas: the one place that names the columns of every table."""

import pyarrow as pa

PASSAGES = pa.schema([("pid", pa.string()), ("text", pa.string())])
QUERIES = pa.schema([("qid", pa.string()), ("text", pa.string())])
QRELS = pa.schema([("qid", pa.string()), ("pid", pa.string()), ("grade", pa.int32())])
CANDIDATES = pa.schema(
    [("qid", pa.string()), ("pid", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]
)
# The training pairs: each training query with its positives and its sampled hard negatives.
PAIRS = pa.schema(
    [
        ("pair_id", pa.int64()),
        ("qid", pa.string()),
        ("pid", pa.string()),
        ("grade", pa.int32()),  # 0 for a negative
        ("rank", pa.int32()),  # BM25 rank, from 1; 0 where the passage was not a candidate
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
