"""Where functions of tables run: in the calling process, or in Ray's workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol


class Calls(Protocol):
    """A handle stands for a value; functions are given handles where they expect values."""

    processors: int

    def put(self, value: Any) -> Any:
        """A handle of a value that several calls are given."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A handle of what the function returns."""

    def wait(self, handle: Any) -> None:
        """Until its call has ended, without fetching what it returned."""

    def get(self, handle: Any) -> Any:
        """The value."""

    def in_order(self, handles: Iterable[Any], at_a_time: int) -> Iterator[Any]:
        """The value of each handle. No more than `at_a_time` calls are begun and not yet taken."""


class InProcess:
    """At once, in the calling process."""

    processors = 1

    def put(self, value: Any) -> Any:
        return value

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def wait(self, handle: Any) -> None:
        pass

    def get(self, handle: Any) -> Any:
        return handle

    def in_order(self, handles: Iterable[Any], at_a_time: int) -> Iterator[Any]:
        yield from handles


class OnRay:
    """Each call a task of a running Ray session.

    ray: the module, as `ray_session` yields it
    """

    def __init__(self, ray: Any):
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}
        self.processors = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def put(self, value: Any) -> Any:
        return self._ray.put(value)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        return self._remote[function].remote(*arguments)

    def wait(self, handle: Any) -> None:
        self._ray.wait([handle], fetch_local=False)

    def get(self, handle: Any) -> Any:
        return self._ray.get(handle)

    def in_order(self, handles: Iterable[Any], at_a_time: int) -> Iterator[Any]:
        begun: deque[Any] = deque()
        for handle in handles:
            begun.append(handle)
            if len(begun) == at_a_time:
                yield self.get(begun.popleft())
        while begun:
            yield self.get(begun.popleft())
