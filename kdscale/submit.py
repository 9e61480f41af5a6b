"""`kdscale submit`: a config, or one stage of it, as a Ray job on a running cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdscale.bundle import MIB, build_bundle, check_paths
from kdscale.config import Config
from kdscale.configload import load_config, to_dict
from kdscale.errors import KdscaleError, by_proxy

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from kdscale.progress import Reporter

ANSWER_S = 10.0  # for the cluster's address to answer at all
POLL_S = 2.0
LOST_S = 120.0  # a connection that is lost while following is tried again for so long
STOP_S = 60.0  # for a job to end after it was asked to
# Where the store is, not who may use it: a job's environment is shown in Ray's dashboard, so that
# credentials must come from the nodes themselves.
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
TOKEN_SOURCES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


def submit(
    address: str,
    path: Path,
    stage: str | None,
    overrides: list[str],
    detach: bool,
    reporter: Reporter,
    resume: bool = False,
) -> int:
    """Send the job, follow its log to the end; its exit code (0 at once with `detach`).

    resume: go on with a sweep.

    Raises KdscaleError for what is wrong with the config, the address or the token, before
    anything is sent.
    """
    if resume and stage != "sweep":
        raise KdscaleError(
            "--resume is of a sweep (--stage sweep); anything else goes on by itself"
        )
    config, settings = _read(path, stage, overrides)
    check_storage(config, reporter)
    check_paths(config)
    client = _connect(address)
    with tempfile.TemporaryDirectory(prefix="kdscale-") as folder:
        size = build_bundle(settings, Path(folder))
        job = _send(client, folder, stage, path, overrides, resume)
    try:
        reporter.info(
            f"job {job}: {stage or 'run'} of {path}, sent {size / MIB:.1f} MiB to {address}"
        )
        if detach:
            _tell_how(reporter, address, job)
            return 0
        return _follow(client, job, reporter, proxied=bool(by_proxy(address)))
    except KeyboardInterrupt:
        return _interrupted(client, address, job, reporter)


def _read(path: Path, stage: str | None, overrides: list[str]) -> tuple[Config, dict[str, Any]]:
    """The config, and all of the file's settings with the overrides in them."""
    if stage == "sweep":
        from kdscale.sweep.spec import load_sweep

        sweep = load_sweep(path, overrides)
        return sweep.base, sweep.document()
    config = load_config(path, overrides)
    return config, to_dict(config)


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


def _send(
    client: JobSubmissionClient,
    folder: str,
    stage: str | None,
    path: Path,
    overrides: list[str],
    resume: bool,
) -> str:
    module = (stage or "run").replace("-", "_")
    passed_on = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    for name, value in passed_on.items():
        if "@" in urlsplit(value).netloc:
            raise KdscaleError(
                f"{name} holds a user name or password, which the job would show to everyone who "
                "sees the dashboard; give credentials to the cluster's nodes instead"
            )
    try:
        return client.submit_job(
            entrypoint=f"python -m jobs.{module} config.yaml" + " --resume" * resume,
            runtime_env={"working_dir": folder, "env_vars": passed_on},
            metadata={"config": str(path), "set": shlex.join(overrides)},
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
