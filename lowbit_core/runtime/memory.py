"""Keeping freed memory in the process, so that the next step need not ask the system for it."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed; returns whether it does. No other system needs it.

    By default glibc takes a tensor of more than 32 MiB from the system and gives it back when it
    is freed. The system then fills every page of it with zeros: a sixth of the time of a step of
    MobileNetV2. The numbers stay the same. A process keeps the most memory that it has needed.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MOST // 2) and mallopt(_TRIM_THRESHOLD, _MOST))
