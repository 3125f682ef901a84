"""The rules that hyper-parameters obey, and attributes that keep to them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, overload

import numpy as np

from adafactor_native._runtime import _core
from adafactor_native.threads import check_num_threads

T = TypeVar("T")


class HyperParameter(Generic[T]):
    """An attribute that is checked whenever it is set, so that no step has to check it.

    Setting it calls ``_hyper_parameter_changed()`` of its owner.
    """

    def __init__(self, check: Callable[[str, Any], T]) -> None:
        self.check = check

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
        instance.__dict__[self._name] = self.check(self._name, value)
        instance._hyper_parameter_changed()


def checked(owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that are attributes of this kind, checked: they come from elsewhere."""
    attributes = {name: getattr(owner, name, None) for name in values}
    return {
        name: attribute.check(name, values[name])
        for name, attribute in attributes.items()
        if isinstance(attribute, HyperParameter)
    }


def _number(must_be: str, accepts: Callable[[float], bool]) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} is a {type(value).__name__}, must be {must_be}") from None
        except OverflowError:
            raise ValueError(f"{name} is beyond float64, must be {must_be}") from None
        if not accepts(number):
            raise ValueError(f"{name} is {number}, must be {must_be}")
        return number

    return check


non_negative = _number("a finite number >= 0", lambda x: 0 <= x < math.inf)
non_positive = _number("a finite number <= 0", lambda x: -math.inf < x <= 0)
at_least_one = _number("a number >= 1", lambda x: x >= 1)
fraction = _number("a number in [0, 1]", lambda x: 0 <= x <= 1)
positive = _number("a finite number > 0", lambda x: 0 < x < math.inf)


def _number_or_none(
    must_be: str, accepts: Callable[[float], bool]
) -> Callable[[str, Any], float | None]:
    check = _number(f"{must_be} or None", accepts)
    return lambda name, value: None if value is None else check(name, value)


positive_or_none = _number_or_none("a number > 0", lambda x: x > 0)
non_positive_or_none = _number_or_none("a finite number <= 0", lambda x: -math.inf < x <= 0)
non_negative_or_none = _number_or_none("a finite number >= 0", lambda x: 0 <= x < math.inf)
above_one_or_none = _number_or_none("a finite number > 1", lambda x: 1 < x < math.inf)
finite_or_none = _number_or_none("a finite number", math.isfinite)
below_one_or_none = _number_or_none("a number in [0, 1)", lambda x: 0 <= x < 1)

_rate = _number("a finite number >= 0 or a callable of t", lambda x: 0 <= x < math.inf)


def rate(name: str, value: Any) -> Any:
    return value if callable(value) else _rate(name, value)


def rate_at(name: str, value: Any, t: int) -> float:
    """Return a number as it is, a callable's at step t; checked, for a callable may return anything."""
    return non_negative(f"{name}({t})", value(t)) if callable(value) else float(value)


def callable_or_none(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}, must be a callable of t or None")
    return value


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is a {type(value).__name__}, must be a bool")
    return bool(value)


def boolean_or_none(name: str, value: Any) -> bool | None:
    return None if value is None else boolean(name, value)


def count(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}, must be an int >= 0") from None
    if not 0 <= number < 2**63:
        if number > 0:
            raise ValueError(f"{name} is too large, must be an int >= 0 and < 2**63")
        shown = number if number > -(2**63) else "negative"
        raise ValueError(f"{name} is {shown}, must be an int >= 0")
    return number


def at_least_one_or_none(name: str, value: Any) -> int | None:
    if value is None:
        return None
    number = count(name, value)
    if number == 0:
        raise ValueError(f"{name} is 0, must be an int >= 1 or None")
    return number


def threads_or_none(name: str, value: Any) -> int | None:
    return None if value is None else check_num_threads(value, name, or_none=" or None")


def one_of(*choices: str) -> Callable[[str, Any], str]:
    must_be = " or ".join([", ".join(map(repr, choices[:-1])), repr(choices[-1])])

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} is {value!r}, must be {must_be}")
        return str(value)

    return check


nonfinite_policy = one_of(*_core.NonFinite.__members__)
