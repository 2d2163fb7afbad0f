"""The methods of the benchmark: a new module here adds those that its METHODS lists, everywhere."""

import importlib
import pkgutil

from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError

METHODS: dict[str, Method] = {}
SOURCES: dict[str, str] = {}
"""The module in which each method is defined, by method name."""

for _info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
    _module = importlib.import_module(f"{__name__}.{_info.name}")
    for _method in _module.METHODS:
        if _method.name in METHODS:
            raise InputError(f"method {_method.name!r} is defined twice: rename one")
        METHODS[_method.name] = _method
        SOURCES[_method.name] = _module.__name__


def method(name: str) -> Method:
    """The method called `name`; InputError names the legal set."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}: it must be one of {', '.join(METHODS)}")
    return METHODS[name]
