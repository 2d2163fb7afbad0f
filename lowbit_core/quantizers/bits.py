"""Bit-widths: the legal set and how a setting is written (W2A2)."""

import re

from lowbit_core.runtime.errors import InputError

BITS = (1, 2, 3, 4, 8, 32)
FLOAT_BITS = 32


def check_bits(bits: object, where: str) -> int:
    """Return `bits` if it is legal; 32 stands for full precision."""
    if type(bits) is not int or bits not in BITS:
        legal = ", ".join(map(str, BITS))
        raise InputError(f"{where}: {bits!r} bits are not offered: choose one of {legal}")
    return bits


def bits_label(w_bits: int, a_bits: int) -> str:
    """`W2A2`; `FP` where nothing is quantized."""
    if w_bits == a_bits == FLOAT_BITS:
        return "FP"
    return f"W{w_bits}A{a_bits}"


def parse_bits(label: str, where: str) -> tuple[int, int]:
    """`W2A2` -> (2, 2); `FP` -> (32, 32)."""
    if label == "FP":
        return FLOAT_BITS, FLOAT_BITS
    match = re.fullmatch(r"W([1-9][0-9]?)A([1-9][0-9]?)", str(label))
    if match is None:
        raise InputError(f"{where}: {label!r} is not a bit setting: write W2A2, W1A32 or FP")
    return check_bits(int(match[1]), where), check_bits(int(match[2]), where)
