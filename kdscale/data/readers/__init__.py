"""Sources of passages, queries and judgments: one reader each, all alike to their caller."""

from __future__ import annotations

from kdscale.config import (
    BeirSource,
    DocstringsSource,
    IrDatasetsSource,
    MsMarcoSource,
    Source,
    TrecSource,
)
from kdscale.data.readers.base import ParallelReader, Reader, Reject

__all__ = ["ParallelReader", "Reader", "Reject", "open_reader"]


def open_reader(source: Source) -> Reader:
    """The reader of a source. Raises KdscaleError at once for what the config names wrongly: a
    missing file, package or dataset id, a split without queries or qrels."""
    # Imported here because kdscale.data.lines, which the readers use, needs Reject from above.
    if isinstance(source, DocstringsSource):
        from kdscale.data.readers.docstrings import DocstringsReader

        return DocstringsReader(source)
    if isinstance(source, BeirSource):
        from kdscale.data.readers.beir import BeirReader

        return BeirReader(source)
    if isinstance(source, MsMarcoSource):
        from kdscale.data.readers.msmarco import MsMarcoReader

        return MsMarcoReader(source)
    if isinstance(source, TrecSource):
        from kdscale.data.readers.trec import TrecReader

        return TrecReader(source)
    if isinstance(source, IrDatasetsSource):
        from kdscale.data.readers.ir_datasets import IrDatasetsReader

        return IrDatasetsReader(source)
    raise TypeError(f"not a source: {source!r}")
