"""What lies far away, in blocks: fetched by threads beside the reading, held until all of a block has been read."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Block = TypeVar("Block")

_FETCHERS = 16  # threads that wait for answers


class Blocks(Generic[Key, Block]):
    """fetch: of a block, called from threads; what it raises is raised where the block is taken. most: blocks held.

    What waits when a fetch has failed fails alike, at once: a program that ends does not wait for a server in vain.
    """

    def __init__(self, fetch: Callable[[Key], Block], most: int):
        self._fetch, self._most = fetch, most
        self._held: OrderedDict[Key, Future[Block]] = OrderedDict()
        self._taken: dict[Key, int] = {}
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")

    def __len__(self) -> int:
        return len(self._held)

    def expect(self, keys: Iterable[Key]) -> None:
        """These will be taken soon."""
        with self._lock:
            for key in keys:
                self._of(key)

    def take(self, key: Key, times: int) -> Block:
        """A block, when it is there; it is held until it has been taken so many times."""
        with self._lock:
            block = self._of(key)
        found = block.result()
        with self._lock:
            self._taken[key] = self._taken.get(key, 0) + 1
            if self._taken[key] >= times:
                self._drop(key)
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._held.clear()
            self._taken.clear()

    def _of(self, key: Key) -> "Future[Block]":
        if key not in self._held:
            while len(self._held) >= self._most:  # read in part, and long ago
                self._drop(next(iter(self._held)))
            self._held[key] = self._pool.submit(self._try, key)
        return self._held[key]

    def _try(self, key: Key) -> Block:
        if self._error:
            raise self._error
        try:
            return self._fetch(key)
        except Exception as error:
            self._error = error
            raise

    def _drop(self, key: Key) -> None:
        self._held.pop(key, None)
        self._taken.pop(key, None)
