"""How long a store is waited for.

Botocore's standard mode repeats a request that failed, within a fraction of a second: it waits up
to 0.05, 0.1, 0.2, ... s, and stops early when many requests of a client fail. That mends a hiccup.
It does not outlast a store that is restarted, and it does not repeat a body that was cut short
while it was read. What it gives up is therefore tried again here, for a minute or so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore.exceptions import IncompleteReadError
from botocore.model import OperationModel
from botocore.parsers import ResponseParserError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from kdscale.store.s3.errors import ERRORS, may_pass

T = TypeVar("T")
# What botocore raises for an answer with a header or a value cut off.
_UNREADABLE = (KeyError, ValueError, ResponseParserError)


@dataclass(frozen=True)
class Patience:
    """connect_s, read_s: until one try of a request fails; tries: botocore's, of a request.

    A call is given up `outage_s` after it first failed, but not before it failed `least` times:
    one that waits for a silent service takes long to fail.
    """

    connect_s: float
    read_s: float
    tries: int
    outage_s: float
    least: int


PATIENT = Patience(connect_s=5, read_s=20, tries=3, outage_s=60, least=3)
QUICK = Patience(connect_s=2, read_s=3, tries=4, outage_s=0, least=1)  # for a preflight


def persist(call: Callable[[], T], patience: Patience) -> T:
    """What `call` returns; it is repeated while it fails in a way that may pass."""
    first_failed: list[float] = []

    def whole() -> T:
        try:
            return call()
        except ERRORS:  # some of these are ValueErrors as well
            raise
        except _UNREADABLE as error:
            raise IncompleteReadError(actual_bytes=0, expected_bytes="?") from error

    def over(state: RetryCallState) -> bool:
        first_failed.append(time.monotonic())
        waited = first_failed[-1] - first_failed[0]
        return state.attempt_number >= patience.least and waited >= patience.outage_s

    tries = Retrying(
        stop=over,
        wait=wait_random_exponential(multiplier=0.5, max=8),
        retry=retry_if_exception(may_pass),
        reraise=True,
    )
    return tries(whole)


def refuse_cut_answers(
    response: tuple[Any, Any] | None, operation: OperationModel, **kwargs: Any
) -> None:
    """A hook of botocore's "needs-retry". Raises IncompleteReadError for an answer without its end.

    Python's http.client takes a connection that is cut within the headers for their end, and
    nobody after it misses a body of which not one byte came: a listing would be empty, a file too.
    """
    if response is None or response[0].status_code in (204, 304):
        return
    answer = response[0]
    length = answer.headers.get("Content-Length", "")
    # Streamed bodies are counted while they are read; the answer to a HEAD has none.
    unread = operation.has_streaming_output or operation.http["method"] == "HEAD"
    if length.isdigit():
        whole = unread or len(answer.content) == int(length)
    else:
        whole = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if not whole:
        raise IncompleteReadError(actual_bytes=0, expected_bytes=length)
