"""Any dataset of the ir_datasets catalogue (https://ir-datasets.com)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kdscale.config import IrDatasetsSource
from kdscale.data.lines import EMPTY_ID
from kdscale.data.readers.base import Reject
from kdscale.errors import KdscaleError

TRAIN = "train"


class IrDatasetsReader:
    """ir_datasets downloads what it needs when it is first read, into IR_DATASETS_HOME."""

    def __init__(self, source: IrDatasetsSource):
        if not source.ids:
            raise KdscaleError(
                "source.ids is empty; map a split to a dataset id (train: msmarco-passage/train)"
            )
        self._ids = dict(source.ids)
        self._sets = {split: _load(split, name) for split, name in self._ids.items()}
        (first, corpus), *others = ((s, d.docs_handler()) for s, d in self._sets.items())
        for split, handler in others:
            if handler != corpus:
                raise KdscaleError(
                    f"source.ids.{split}: {self._ids[split]} does not share its documents with "
                    f"{self._ids[first]}; give ids over one corpus"
                )

    def fingerprint(self) -> dict[str, Any]:
        """The catalogue pins each download by its digest, so its version stands for the files."""
        from importlib.metadata import version

        return {"ids": self._ids, "ir_datasets": version("ir-datasets")}

    def passages(self) -> Iterator[tuple[str, str] | Reject]:
        split = self.splits()[0]
        return self._texts(split, "docs", lambda doc: (doc.doc_id, doc.default_text()))

    def splits(self) -> list[str]:
        return list(self._ids)

    def queries(self, split: str) -> Iterator[tuple[str, str] | Reject]:
        return self._texts(split, "queries", lambda q: (q.query_id, q.default_text()))

    def qrels(self, split: str) -> Iterator[tuple[str, str, int] | Reject]:
        for qrel in self._items(split, "qrels"):
            yield qrel.query_id, qrel.doc_id, int(qrel.relevance)

    def candidates(self, split: str) -> ScoredDocs | None:
        if not self._sets[split].has_scoreddocs():
            return None
        return ScoredDocs(lambda: self._items(split, "scoreddocs"))

    def negatives(self) -> Iterator[tuple[str, str] | Reject] | None:
        has_pairs = TRAIN in self._sets and self._sets[TRAIN].has_docpairs()
        return self._negatives() if has_pairs else None

    def _negatives(self) -> Iterator[tuple[str, str]]:
        for pair in self._items(TRAIN, "docpairs"):
            yield pair.query_id, pair.doc_id_b

    def _texts(self, split: str, entity: str, fields: Any) -> Iterator[tuple[str, str] | Reject]:
        for number, item in enumerate(self._items(split, entity), 1):
            identifier, text = fields(item)
            if identifier:
                yield identifier, text or ""
            else:
                yield Reject.of(f"{self._ids[split]} {entity}", number, EMPTY_ID, text or "")

    def _items(self, split: str, entity: str) -> Iterator[Any]:
        """Every item of an entity ("docs", "queries", ...) of a split's dataset."""
        try:
            yield from getattr(self._sets[split], f"{entity}_iter")()
        except Exception as error:  # its downloads and parsers raise dozens of kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            raise KdscaleError(
                f"source.ids.{split}: ir_datasets could not read the {entity} of "
                f"{self._ids[split]} ({reason}); check the network, the disk and whether the "
                "dataset asks for files of your own"
            ) from error


@dataclass
class ScoredDocs:
    """(qid, pid, None, score): the place of an entry is no rank, MS MARCO's come by id."""

    items: Callable[[], Iterator[Any]]
    columns = "qid pid score"

    def __iter__(self) -> Iterator[tuple[str, str, None, float]]:
        for item in self.items():
            yield item.query_id, item.doc_id, None, float(item.score)


def _load(split: str, name: str) -> Any:
    import ir_datasets

    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        near = difflib.get_close_matches(name, list(ir_datasets.registry), n=1)
        hint = f"did you mean {near[0]}?" if near else "see https://ir-datasets.com"
        raise KdscaleError(
            f"source.ids.{split}: ir_datasets has no dataset {name!r}; {hint}"
        ) from None
    for entity in ("docs", "queries", "qrels"):
        if not getattr(dataset, f"has_{entity}")():
            raise KdscaleError(
                f"source.ids.{split}: {name} has no {entity}; give an id that has documents, "
                "queries and qrels"
            )
    return dataset
