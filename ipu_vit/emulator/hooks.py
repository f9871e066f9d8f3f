"""Functions that programs have called around every compilation."""

from __future__ import annotations

from typing import Callable, List

Function = Callable[[], None]

before_compiling: List[Function] = []
after_compiling: List[Function] = []


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
    return Hook(before_compiling, hook)


def registerPostCompileHook(hook: Function) -> Hook:
    """`poptorch.registerPostCompileHook`: call a function after every compilation."""
    return Hook(after_compiling, hook)
