"""Search. The package itself is the function `diptych.search(db, text, ...)`, for both have the one name."""

import sys
from types import ModuleType
from typing import Any


class Callable(ModuleType):
    def __call__(self, *words: Any, **options: Any) -> Any:
        from diptych.search.run import search

        return search(*words, **options)


sys.modules[__name__].__class__ = Callable
