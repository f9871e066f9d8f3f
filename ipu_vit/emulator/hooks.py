"""Functions that programs have called around every compilation."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, List

Function = Callable[[], None]

before_compiling: List[Function] = []
after_compiling: List[Function] = []


@contextmanager
def around_compiling() -> Iterator[None]:
    """Call them, those for afterwards even if compiling fails."""
    for hook in before_compiling:
        hook()
    try:
        yield
    finally:
        for hook in after_compiling:
            hook()


class Hook:
    """A registered function; `remove()` takes it off."""

    def __init__(self, hooks: List[Function], function: Function) -> None:
        self._hooks, self._function = hooks, function
        hooks.append(function)

    def remove(self) -> None:
        if self._function in self._hooks:
            self._hooks.remove(self._function)


def registerPreCompileHook(hook: Function) -> Hook:
    """`poptorch.registerPreCompileHook`: call a function before every compilation."""
    return Hook(before_compiling, _callable(hook, "Pre"))


def registerPostCompileHook(hook: Function) -> Hook:
    """`poptorch.registerPostCompileHook`: call a function after every compilation."""
    return Hook(after_compiling, _callable(hook, "Post"))


def _callable(hook: Function, when: str) -> Function:
    if not callable(hook):
        raise RuntimeError(f"{when}-compile hook must be callable, not {hook!r}")
    return hook
