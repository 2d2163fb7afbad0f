"""What a `.lowbit` file holds is checked when it is taken: names, numbers and arrays."""

import numpy as np

from deploy import container

MOST_NAME = 500  # characters


class Refused(Exception):
    """What is wrong in a file, without its name."""


def require(condition: bool, fault: str) -> None:
    if not condition:
        raise Refused(fault)


class Fields:
    """The fields of a JSON object, each checked when it is taken."""

    def __init__(self, value: object, where: str) -> None:
        require(isinstance(value, dict), f"{where} is not an object")
        self._value, self.where = value, where

    def get(self, key: str) -> object:
        require(key in self._value, f"{self.where} has no {key!r}")
        return self._value[key]

    def text(self, key: str, legal: tuple[str, ...] = ()) -> str:
        value = self.get(key)
        good = isinstance(value, str) and len(value) <= MOST_NAME and value.isprintable()
        require(
            good,
            f"{self.where}: {key!r} is no name of at most {MOST_NAME} characters that can be "
            "printed",
        )
        choices = ", ".join(legal)
        require(not legal or value in legal, f"{self.where}: {key} {value!r} is none of {choices}")
        return value

    def flag(self, key: str) -> bool:
        require(isinstance(self.get(key), bool), f"{self.where}: {key!r} is not true or false")
        return self.get(key)

    def integers(self, key: str, count: int, low: int, high: int) -> tuple[int, ...]:
        value = self.get(key)
        good = isinstance(value, list) and len(value) == count
        good = good and all(type(v) is int and low <= v <= high for v in value)
        limits = f"{count} whole numbers from {low} to {high}"
        require(good, f"{self.where}: {key} {value!r:.60} is not {limits}")
        return tuple(value)

    def whole(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        good = type(value) is int and low <= value <= high
        limits = f"a whole number from {low} to {high}"
        require(good, f"{self.where}: {key} {value!r:.60} is not {limits}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        good = type(value) in (int, float) and low <= value <= high
        require(good, f"{self.where}: {key} {value!r:.60} is not a number from {low} to {high}")
        return float(value)


class Arrays:
    """The arrays of a file, taken in order; each must have the expected type and shape."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._left = arrays[::-1]

    def take(self, dtype: str, shape: tuple[int | None, ...], where: str) -> np.ndarray:
        """The next array; None in `shape` stands for any length."""
        require(bool(self._left), f"{where}: the file has too few arrays")
        array = self._left.pop()
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        require(fits, f"{where}: an array has the shape {array.shape}, not {shape}")
        require(array.dtype == container.DTYPES[dtype], f"{where}: an array is not of type {dtype}")
        return array

    def floats(self, shape: tuple[int | None, ...], where: str) -> np.ndarray:
        array = self.take("f4", shape, where)
        require(bool(np.isfinite(array).all()), f"{where}: a number is not finite")
        return array

    def end(self) -> None:
        require(not self._left, f"{len(self._left)} arrays belong to no operation")
