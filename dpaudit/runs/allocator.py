"""Freed memory that the process keeps: a command that trains takes page faults once and not at every tensor.

glibc gives a freed block of some MiB back to the system, so that the next tensor of that size takes a page fault for
each of its pages: up to a quarter of a training step's time on a virtual machine. Three of its parameters keep the
memory. They change where tensors lie and how often the system is asked, and no number in them.

Only processes that dpaudit starts set them; a library leaves its user's process alone.
"""

from __future__ import annotations

import os
import sys

SWITCH = "DPAUDIT_ALLOCATOR"
"""Environment variable; ``plain`` leaves the allocator as it is."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 2**20
_NEVER = -1  # stands for the largest size there is: mallopt widens its argument to size_t
_LARGEST_IN_HEAP = (1024 * _MIB, 32 * _MIB)  # some releases of glibc refuse more than 32 MiB


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next tensor, to the end of this process.

    Nothing happens on other systems and C libraries, where ``DPAUDIT_ALLOCATOR=plain`` is set, and where the user chose
    already: with any ``MALLOC_`` variable or ``GLIBC_TUNABLES``. An allocator that is preloaded in glibc's place is not
    affected.

    Returns
    -------
    bool
        Whether glibc was told.
    """
    chosen = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or os.environ.get(SWITCH) == "plain" or not _on_glibc():
        return False
    try:
        import ctypes  # here, since every command imports this module and few call the function

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):  # a program that is linked statically, among others
        return False
    # Any of these calls ends glibc's own adjustment of its thresholds, so that the one for mmap must not stay low.
    kept = any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST_IN_HEAP)
    return kept and bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_TOP_PAD, 64 * _MIB))


def _on_glibc() -> bool:
    """Whether this process's C library is glibc."""
    if sys.platform != "linux":
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # the name is unknown to another library
        return False
