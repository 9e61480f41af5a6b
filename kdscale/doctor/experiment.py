"""Is a config fit for a run: its store, source, measures and models."""

from __future__ import annotations

from pathlib import Path

from kdscale.config import BeirSource, Config, MsMarcoSource, TrecSource
from kdscale.doctor import Check, Severity, attempt
from kdscale.errors import KdscaleError

QUICK_SOURCES = (BeirSource, MsMarcoSource, TrecSource)


def check_store(config: Config) -> Check:
    from kdscale.store import open_store

    def look() -> str:
        store = open_store(config.storage.uri)
        store.preflight()
        return f"{store.uri} can be written to"

    return attempt("store", "set storage.uri to a folder or bucket that you may write to", look)


def check_source(config: Config) -> Check:
    from kdscale.data.readers import open_reader
    from kdscale.experiment.transfer import transfer_config

    def look() -> str:
        splits = open_reader(config.source).splits()
        for name in config.transfer:
            open_reader(transfer_config(config, name).source)
        also = f"; transfer {', '.join(config.transfer)}" if config.transfer else ""
        return f"{config.source.type}, splits {', '.join(splits)}{also}"

    return attempt("source", "mend the section source (or transfer) of the config", look)


def check_queries(config: Config) -> Check:
    """Training queries that are judged by too, where queries are quickly read: from files."""
    from kdscale.data.queries import TRAIN
    from kdscale.data.readers import open_reader
    from kdscale.data.splits import describe, leaked, read_texts
    from kdscale.experiment.transfer import transfer_config

    def look() -> str:
        if not isinstance(config.source, QUICK_SOURCES):
            return f"those of {config.source.type} are counted when they are prepared"
        texts = read_texts(open_reader(config.source), config.prepare.split)
        said = ", ".join(f"{split} {len(of)}" for split, of in texts.items())
        train = texts.pop(TRAIN, {})
        for name, transfer in config.transfer.items():
            if isinstance(transfer.source, QUICK_SOURCES):
                reader = open_reader(transfer_config(config, name).source)
                (of_transfer,) = read_texts(reader, {}).values()
                texts[f"{name}/{transfer.split}"] = of_transfer
        leaks = {split: len(qids) for split, qids in leaked(train, texts).items()}
        if config.prepare.leakage == "drop":
            leaks = {split: count for split, count in leaks.items() if "/" in split}
        if leaks:
            raise KdscaleError(describe(leaks))
        return said

    fix = "set prepare.leakage to drop, or part the queries; a transfer's are to be new"
    return attempt("queries", fix, look, "warning")


def check_measures_of(config: Config) -> Check:
    from kdscale.evaluation.measures import check_measures

    def look() -> str:
        check_measures(config)
        evaluate = config.evaluate
        told = (f"{evaluate.primary_of(split)} on {split}" for split in evaluate.splits)
        return f"all can be computed; the primary one: {', '.join(told)}"

    return attempt("measures", "mend evaluate or ranker.watch of the config", look)


def check_model(name: str, revision: str | None, severity: Severity) -> Check:
    """The teacher's encoder: a folder must have weights, a hub id must be within reach."""
    from transformers.utils import has_file

    from kdscale.models.pretrained import WEIGHTS, read_config, resolve_model

    def look() -> str:
        place = resolve_model(name, revision)
        kind = read_config(place, revision).model_type
        if Path(place).is_dir():
            return f"{name}: {kind}, weights in {place}"
        if not any(has_file(place, weights, revision=revision) for weights in WEIGHTS):
            raise KdscaleError(f"{name} has no {WEIGHTS[0]} on the hub; choose another model")
        return f"{name}: {kind}, will be downloaded on first use"

    return attempt("model", "set teacher.model to a model folder or a hub id", look, severity)


def check_training(config: Config) -> Check:
    """Teachers and students, made small by the code that will make them."""
    from kdscale.experiment.rehearsal import check_models
    from kdscale.experiment.steps import build_steps

    fix = "mend teacher, students, lm or ranker of the config"
    warnings: list[str] = []

    def look() -> str:
        warnings.extend(check_models(config, build_steps(config)))
        teachers, shapes = len(config.teachers), len(config.students)
        return (
            f"{teachers} teacher{'s' * (teachers != 1)} and {shapes} "
            f"student shape{'s' * (shapes != 1)} can be made"
        )

    check = attempt("training", fix, look)
    return Check("training", "warning", "; ".join(warnings)) if warnings else check
