"""The rules that hyper-parameters obey, and attributes that keep to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy as np

from adafactor_native.threads import check_num_threads

T = TypeVar("T")


class HyperParameter(Generic[T]):
    """An attribute that is checked whenever it is set, so that a step need not.

    Setting it calls ``_hyper_parameter_changed()`` of its owner.
    """

    def __init__(self, check: Callable[[str, Any], T]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> HyperParameter[T]: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> HyperParameter[T] | T:
        if instance is None:
            return self
        value: T = instance.__dict__[self._name]
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = self._check(self._name, value)
        instance._hyper_parameter_changed()


def _number(must_be: str, accepts: Callable[[float], bool]) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} is a {type(value).__name__}, must be {must_be}") from None
        if not accepts(number):
            raise ValueError(f"{name} is {number}, must be {must_be}")
        return number

    return check


non_negative = _number("a finite number >= 0", lambda x: 0 <= x < math.inf)
fraction = _number("a number in [0, 1]", lambda x: 0 <= x <= 1)
_positive = _number("a number > 0 or None", lambda x: x > 0)


def positive_or_none(name: str, value: Any) -> float | None:
    return None if value is None else _positive(name, value)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is a {type(value).__name__}, must be a bool")
    return bool(value)


def threads_or_none(name: str, value: Any) -> int | None:
    return None if value is None else check_num_threads(value, name, or_none=" or None")


NONFINITE_POLICIES = ("raise", "skip", "propagate")


def nonfinite_policy(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in NONFINITE_POLICIES:
        raise ValueError(f"{name} is {value!r}, must be 'raise', 'skip' or 'propagate'")
    return str(value)
