"""`kdscale submit`: a config, or one stage of it, as a Ray job on a running cluster. The job is
sent the package, the entry points, and the config as it was checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

import kdscale
from kdscale.config import Config
from kdscale.errors import KdscaleError, by_proxy

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from kdscale.progress import Reporter

MIB = 1024**2
LIMIT_BYTES = 100 * MIB  # what Ray's job server takes
# The settings of each source that are paths, or hold them.
SOURCE_PATHS = {
    "beir": ("path",),
    "msmarco": ("collection", "queries", "qrels", "candidates", "triples"),
    "trec": ("documents", "topics", "qrels", "runs"),
}


def build_bundle(settings: dict[str, Any], folder: Path) -> int:
    """Fill the empty `folder` with what a job needs and nothing else; its size in bytes.

    settings: the config, which goes as one file with overrides and student shapes in it: what was
    checked is what runs. Raises KdscaleError where there are no entry points, or above Ray's limit.
    """
    package = Path(kdscale.__file__).parent
    jobs = package.parent / "jobs"
    if not (jobs / "run.py").is_file():
        raise KdscaleError(
            f"no folder jobs beside {package}; install kdscale from a clone of its repository "
            "(pip install -e .) to submit jobs"
        )
    for source in (package, jobs):
        shutil.copytree(
            source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    (folder / "config.yaml").write_text(
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    sizes = {p: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    total = sum(sizes.values())
    if total >= LIMIT_BYTES:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        raise KdscaleError(
            f"the job would be {total / MIB:.0f} MiB, Ray takes {LIMIT_BYTES // MIB}; move out of "
            + ", ".join(f"{p.relative_to(folder)} ({sizes[p] / MIB:.0f} MiB)" for p in largest)
        )
    return total


def check_paths(config: Config) -> None:
    """Raise KdscaleError for a path that is meant from this working directory: a job has another,
    which holds the package and the config alone. (`check_storage` is about the store.)"""
    for key, path in _paths(config):
        if path and not path.startswith(("/", "~")):
            raise KdscaleError(
                f"{key}: {path!r} is relative, and would be looked for in the job's own folder on "
                "the cluster; give an absolute path that every node mounts"
            )
    for number, teacher in enumerate(config.teachers):
        if Path(teacher.model).is_dir() and not teacher.model.startswith(("/", "~")):
            key = f"ensemble[{number - 1}].model" if number else "teacher.model"
            raise KdscaleError(
                f"{key}: {teacher.model!r} is a folder here, and on the cluster would be taken for "
                "a model of the hub; give an absolute path that every node mounts, or submit from "
                "another folder if the hub's is meant"
            )


def _paths(config: Config) -> Iterator[tuple[str, str]]:
    """Key and path of each file or folder that a job reads."""
    sources = {"source": config.source}
    sources |= {f"transfer.{name}.source": t.source for name, t in config.transfer.items()}
    for where, source in sources.items():
        for name in SOURCE_PATHS.get(source.type, ()):
            yield from _flat(f"{where}.{name}", getattr(source, name))
    yield from _flat("prepare.extra_text", config.prepare.extra_text)
    yield from _flat("report.trials", config.report.trials)


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        for i, inner in enumerate(value or ()):
            yield from _flat(f"{key}[{i}]", inner)


ANSWER_S = 10.0  # for the cluster's address to answer at all
POLL_S = 2.0
LOST_S = 120.0  # a connection that is lost while following is tried again for so long
STOP_S = 60.0  # for a job to end after it was asked to
# Where the store is, not who may use it: a job's environment is shown in Ray's dashboard, so that
# credentials must come from the nodes themselves.
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
TOKEN_SOURCES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


@dataclass(frozen=True)
class Request:
    """What is asked of a cluster.

    config: for the checks; settings: what the job gets, overrides and shapes in it; stage: None for
    the whole experiment; path and overrides: as they were given, for the dashboard
    """

    config: Config
    settings: dict[str, Any]
    stage: str | None
    path: Path
    overrides: list[str]
    resume: bool = False


def submit(address: str, request: Request, detach: bool, reporter: Reporter) -> int:
    """Send the job, follow its log to the end; its exit code (0 at once with `detach`).

    Raises KdscaleError for what is wrong with the config, the address or the token, before
    anything is sent.
    """
    check_storage(request.config, reporter)
    check_paths(request.config)
    client = _connect(address)
    with tempfile.TemporaryDirectory(prefix="kdscale-") as folder:
        size = build_bundle(request.settings, Path(folder))
        job = _send(client, folder, request)
    try:
        what = f"{request.stage or 'run'} of {request.path}"
        reporter.info(f"job {job}: {what}, sent {size / MIB:.1f} MiB to {address}")
        if detach:
            _tell_how(reporter, address, job)
            return 0
        return _follow(client, job, reporter, proxied=bool(by_proxy(address)))
    except KeyboardInterrupt:
        return _interrupted(client, address, job, reporter)


def check_storage(config: Config, reporter: Reporter) -> None:
    """Refuse a store that would go with the job; say so of one that nodes may not share."""
    uri = config.storage.uri
    folder = uri.removeprefix("file://")
    if "://" in folder:
        return
    if not Path(folder).is_absolute():
        raise KdscaleError(
            f"storage.uri {uri!r} is relative: on the cluster it would lie in the job's own "
            "folder, which Ray deletes after the job; set s3://bucket/prefix, or an absolute "
            "folder that every node mounts"
        )
    reporter.warn(f"storage.uri {uri} is a folder: every node of the cluster must mount it")


def _connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server. Raises KdscaleError within seconds."""
    address = address.rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise KdscaleError(
            f"--address {address}: write it as http://HOST:8265, the address of Ray's dashboard"
        )
    # Ray would take these before the address that it is given.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    import requests

    try:
        # Any answer will do: whether it is Ray, and lets us in, is the client's own first question.
        requests.get(f"{address}/api/version", timeout=ANSWER_S)
    except requests.RequestException as error:
        reason = "no answer" if isinstance(error, requests.Timeout) else "no connection"
        raise KdscaleError(
            f"--address {address}: {reason}; see that the cluster is up, its dashboard on this "
            f"port, and the port forwarded{by_proxy(address)}"
        ) from None

    import logging

    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in (
        "ray.dashboard.modules.dashboard_sdk",
        "ray.dashboard.modules.job.sdk",
        "ray._private.runtime_env.packaging",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except AuthenticationError:
        wrong = "refuses this token" if _has_token() else "asks for a token, and there is none"
        raise KdscaleError(
            f"--address {address}: the cluster {wrong}; set {TOKEN_SOURCES} to the cluster's token"
        ) from None
    except (RuntimeError, ValueError, OSError) as error:
        raise KdscaleError(
            f"--address {address}: something answers that is not Ray's dashboard "
            f"({_first_line(error)}); give the dashboard's address, usually port 8265"
            f"{by_proxy(address)}"
        ) from None
    return client


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return False
    return bool(
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or (Path.home() / ".ray" / "auth_token").is_file()
    )


def _send(client: JobSubmissionClient, folder: str, request: Request) -> str:
    module = (request.stage or "run").replace("-", "_")
    passed_on = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    for name, value in passed_on.items():
        if "@" in urlsplit(value).netloc:
            raise KdscaleError(
                f"{name} holds a user name or password, which the job would show to everyone who "
                "sees the dashboard; give credentials to the cluster's nodes instead"
            )
    try:
        return client.submit_job(
            entrypoint=f"python -m jobs.{module} config.yaml" + " --resume" * request.resume,
            runtime_env={"working_dir": folder, "env_vars": passed_on},
            metadata={"config": str(request.path), "set": shlex.join(request.overrides)},
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise KdscaleError(f"the cluster refused the job: {_first_line(error)}") from None


def _follow(client: JobSubmissionClient, job: str, reporter: Reporter, proxied: bool) -> int:
    """Print the log as it comes until the job ends; the exit code of the job."""
    # Ray's own stream of a log is a WebSocket that takes no notice of a proxy.
    news = _asked_again_and_again if proxied else type(client).tail_job_logs
    details = asyncio.run(_print_log(client, job, news))
    status = details.status.value
    if status == "SUCCEEDED":
        reporter.info(f"job {job}: succeeded")
        return 0
    # The message repeats the log, which was just printed.
    message = re.split(r",? last available logs|\n", details.message or "")[0].strip()
    reporter.warn(f"job {job}: {status.lower()}" + (f" ({message})" if message else ""))
    if status == "STOPPED":
        return 128 + signal.SIGTERM
    return details.driver_exit_code or 1


async def _asked_again_and_again(client: JobSubmissionClient, job: str) -> AsyncIterator[str]:
    """The log as it grows, until the job has ended."""
    seen = 0
    while True:
        ended = client.get_job_status(job).is_terminal()
        log = client.get_job_logs(job)
        yield log[seen:]
        if ended:
            return
        seen = len(log)
        await asyncio.sleep(POLL_S)


async def _print_log(
    client: JobSubmissionClient,
    job: str,
    news: Callable[[JobSubmissionClient, str], AsyncIterator[str]],
) -> Any:
    """The job's details once it has ended. A lost connection is made again, nothing said twice.

    news: the log from its beginning, piece by piece
    """
    import aiohttp
    import requests

    lost_since: float | None = None
    printed = 0
    while True:
        seen = 0
        try:
            async for text in news(client, job):
                lost_since = None
                new = text[max(0, printed - seen) :]
                seen += len(text)
                if new:
                    sys.stdout.write(new)
                    sys.stdout.flush()
                    printed = seen
            details = client.get_job_info(job)
            if details.status.is_terminal():
                return details
        except (RuntimeError, aiohttp.ClientError, requests.RequestException, OSError) as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_S:
                raise KdscaleError(
                    f"the connection to the cluster was lost ({_first_line(error)}); job {job} "
                    "may still run there"
                ) from None
        await asyncio.sleep(1)


def _interrupted(client: JobSubmissionClient, address: str, job: str, reporter: Reporter) -> int:
    """After Ctrl-C: ask whether the job is to stop too; without a terminal it goes on."""
    stop = False
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            stop = input(f"\nstop job {job} too? [y/N] ").strip().lower() in ("y", "yes")
    if not stop:
        reporter.info(f"\njob {job} goes on")
        _tell_how(reporter, address, job)
        return 128 + signal.SIGINT
    client.stop_job(job)
    deadline = time.monotonic() + STOP_S
    while not (status := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            raise KdscaleError(f"job {job} was told to stop and is still {status.value.lower()}")
        time.sleep(0.5)
    reporter.info(f"job {job}: {status.value.lower()}; finished stages are kept")
    return 128 + signal.SIGINT


def _tell_how(reporter: Reporter, address: str, job: str) -> None:
    token = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    reporter.info(f"  follow it: {token}ray job logs --follow --address {address} {job}")
    reporter.info(f"  stop it:   {token}ray job stop --address {address} {job}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
