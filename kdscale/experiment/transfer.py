"""Collections that no ranker was trained on: how each is prepared, and what is wrong with one."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdscale.config import Config, DocstringsSource, Prepare, Source
from kdscale.errors import KdscaleError

# The field of each source that maps the names of its query sets.
_SPLITS = {"beir": "splits", "msmarco": "queries", "trec": "topics", "ir_datasets": "ids"}
_DOCSTRING_SPLITS = ("train", "dev", "test")


def transfer_config(config: Config, name: str) -> Config:
    """The config by which the prepare stages make the dataset and tokens of a transfer.

    Its texts are cleaned, indexed and tokenised as those of the experiment are; of its source
    only the one query set is read, and nothing is prepared to train on.
    """
    transfer, prepare = config.transfer[name], config.prepare
    queries = {} if transfer.max_queries is None else {transfer.split: transfer.max_queries}
    return dataclasses.replace(
        config,
        source=_only(transfer.source, transfer.split),
        prepare=Prepare(
            max_queries=queries,
            depth={},
            default_depth=transfer.depth,
            query_as_passage=prepare.query_as_passage,
            bm25_k1=prepare.bm25_k1,
            bm25_b=prepare.bm25_b,
            min_grade=prepare.min_grade,
            max_chars=prepare.max_chars,
            max_reject_fraction=prepare.max_reject_fraction,
            max_length=prepare.max_length,
            block_length=prepare.block_length,
            max_block_tokens=prepare.block_length,  # no language model learns from this text
            shards=prepare.shards,
        ),
        transfer={},
    )


def check_transfers(config: Config) -> None:
    """Raise KdscaleError for a transfer that could not be ranked, naming its key."""
    for name, transfer in config.transfer.items():
        key, split = f"transfer.{name}", transfer.split
        if name.casefold() in (s.casefold() for s in config.evaluate.splits):
            raise KdscaleError(
                f"{key}: evaluate.splits has a split of that name; give the transfer another"
            )
        if split == "all":
            raise KdscaleError(
                f'{key}.split: "all" is a query set to be divided, and a transfer is evaluated '
                "whole; name its query set otherwise, for example test"
            )
        known = split_names(transfer.source)
        if split not in known:
            raise KdscaleError(
                f"{key}.split: its source has no query set {split!r}, only "
                f"{', '.join(known) or 'none'}"
            )


def split_names(source: Source) -> list[str]:
    """The query sets that a source names."""
    if isinstance(source, DocstringsSource):
        return list(_DOCSTRING_SPLITS)
    return list(getattr(source, _SPLITS[source.type]))


def _only(source: Source, split: str) -> Source:
    """The source without its other query sets (those of docstrings are not files of their own)."""
    kept: dict[str, Any] = {
        field.name: {split: value[split]} if split in value else {}
        for field in dataclasses.fields(source)
        if isinstance(value := getattr(source, field.name), dict)
    }
    if hasattr(source, "triples"):
        kept["triples"] = None  # of the split train alone
    return dataclasses.replace(source, **kept)
