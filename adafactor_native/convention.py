"""What a convention is: a library's arguments, and the switches that they stand for.

Annotations of this module are read at run time, by Python 3.9 too: none may need a later one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Optional, TypedDict

from adafactor_native.suggestions import closest
from adafactor_native.switches import (
    PAPER,
    SWITCHES,
    DecaySwitches,
    MomentSwitches,
    StepSwitches,
    Values,
    annotations_of,
    check_switches,
)

Shown = str  # what a message calls an argument


def _as_it_is(shown: Shown, value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Argument:
    """An argument that a library calls otherwise than the switch it sets, or means otherwise.

    Attributes
    ----------
    default : object
        The library's.
    sets : tuple of str
        The switches it sets; none, if it is only accepted.
    meaning : callable
        Takes what a message calls the argument and its value; returns the switch's value, or a
        tuple of as many as it sets. Raises TypeError or ValueError.
    """

    default: Any
    sets: tuple[str, ...]
    meaning: Callable[[Shown, Any], Any] = _as_it_is

    def switches(self, shown: Shown, value: Any) -> Values:
        values = self.meaning(shown, value)
        return dict(zip(self.sets, values if len(self.sets) > 1 else (values,)))


class Options(TypedDict, total=False):
    """What an `Optimizer` takes beside hyper-parameters, for type checkers."""

    copies: Any
    nonfinite: Literal["raise", "skip", "propagate"]
    atomic: Literal["all", "tensor"]
    max_grad_norm: Optional[float]
    max_skipped: Optional[int]
    skip_above: Optional[float]
    num_threads: Optional[int]
    carry_param_rms: bool
    seed: int
    comm: Any
    shards: Any
    timeout: Optional[float]
    sums: Literal["fast", "exact"]


class Arguments(StepSwitches, MomentSwitches, DecaySwitches, Options, total=False):
    """What every convention takes.

    Also the switches lr, eps and weight_decay, unless the library has an argument of the same name
    that takes other values.
    """


class Convention:
    """A library's way of asking for a step.

    Parameters
    ----------
    name : str
    arguments : TypedDict
        What it takes, those of its own annotated by an `Argument`, with its documentation.
    defaults : mapping of str to object
        The switches that are not the paper's there, whatever is given.
    together : callable
        Takes the values of all arguments by name; returns the switches that depend on several of
        them, or raises if they contradict each other.

    Attributes
    ----------
    own : mapping of str to Argument
    defaults : mapping of str to object
        Of all switches, checked by nobody: one that must be given is None.
    """

    def __init__(
        self,
        name: str,
        arguments: type,
        defaults: Mapping[str, Any],
        together: Callable[[Mapping[str, Any]], Values] = lambda arguments: {},
    ) -> None:
        self.name = name
        self.own: dict[str, Argument] = annotations_of(arguments, Argument)
        self.documentation = arguments.__doc__ or ""
        self._together = together
        self._constant = {**PAPER, **defaults}
        self.defaults = self._translated(self._own_defaults(), {}, {})

    @property
    def arguments(self) -> dict[str, Any]:
        """All that may be given and its default: a library's own arguments, and all switches."""
        return {**self.defaults, **self._own_defaults()}

    def switches(self, *levels: tuple[str, Mapping[str, Any]]) -> Values:
        """Return the switches that somebody asks for, all checked.

        Parameters
        ----------
        *levels : pairs of str and mapping
            How a message shows an argument, with ``{}`` for its name; and arguments: the library's
            own, or switches by name, which count more. A later level counts more than an earlier.

        Raises
        ------
        TypeError
            If an argument is unknown, sets what another one of its level sets, or is of a wrong
            type.
        ValueError
            If an argument is out of range or contradicts another.
        """
        own = self._own_defaults()
        instead: Values = {}
        shown: dict[str, Shown] = {}  # by switch
        own_shown: dict[str, Shown] = {}
        for where, given in (("{}", own), *levels):
            for switch, setter in self._setters(where, given).items():
                sets = self._sets(setter)
                place = f"[{sets.index(switch)}]" if len(sets) > 1 else ""
                shown[switch] = where.format(setter) + place
                instead.pop(switch, None)
            for name, value in given.items():
                (own if name in own else instead)[name] = value
                own_shown[name] = where.format(name)
        translated = self._translated(own, instead, own_shown)
        return check_switches({**translated, **instead}, shown)

    def _instead_of(self, name: str) -> str:
        """Return what a message says to give instead of an argument that is unknown."""
        switch = switch_elsewhere(name)
        if switch is not None:
            setters = [mine for mine, argument in self.own.items() if switch in argument.sets]
            return f"where it is called {(setters or [switch])[0]!r}"
        if name in Options.__annotations__:
            return "must be given to the Optimizer itself"
        guess = closest(name, (*self.own, *SWITCHES, *Options.__annotations__))
        if guess is not None:
            return f"did you mean {guess!r}?"
        return "must be a switch or an argument of that library; help(Optimizer) lists them"

    def _translated(
        self, own: Mapping[str, Any], instead: Values, shown: Mapping[str, Shown]
    ) -> Values:
        """Return the switches that a library's own arguments stand for, beside those given as such."""
        switches = dict(self._constant)
        for name, argument in self.own.items():
            switches |= argument.switches(shown.get(name, name), own[name])
        return switches | self._together({**switches, **instead, **own})

    def _own_defaults(self) -> Values:
        return {name: argument.default for name, argument in self.own.items()}

    def _sets(self, name: str) -> tuple[str, ...]:
        return self.own[name].sets if name in self.own else (name,)

    def _setters(self, where: str, given: Mapping[str, Any]) -> dict[str, str]:
        """Return which of the given arguments sets each switch that any of them sets."""
        setters: dict[str, str] = {}
        for name in given:
            if name not in self.own and name not in SWITCHES:
                raise TypeError(
                    f"{where.format(name)} is unknown to convention {self.name!r}, "
                    f"{self._instead_of(name)}"
                )
            for switch in self._sets(name):
                if switch in setters:
                    raise TypeError(
                        f"{switch} is given twice, as {where.format(setters[switch])} and as "
                        f"{where.format(name)}, must be given once"
                    )
                setters[switch] = name
        return setters


CONVENTIONS: dict[str, Convention] = {}  # adafactor_native.conventions fills it

# The name of the convention that was the default before version 0.2
_FORMER_NAMES = {"seed": "numpy"}


def switch_elsewhere(name: str) -> Optional[str]:
    """Return the switch that an argument of this name sets in some convention, None if there is none."""
    sets = (other.own[name].sets for other in CONVENTIONS.values() if name in other.own)
    return next((switch for switches in sets for switch in switches), None)


def current_name(value: Any) -> Any:
    """Return what a convention of an older version is called now."""
    return _FORMER_NAMES.get(value, value) if isinstance(value, str) else value


def convention_of(value: Any) -> Convention:
    name = current_name(value)
    if not isinstance(name, str) or name not in CONVENTIONS:
        known = ", ".join(map(repr, CONVENTIONS))
        guess = closest(name, CONVENTIONS) if isinstance(name, str) else None
        instead = f"; did you mean {guess!r}?" if guess else ""
        raise ValueError(f"convention is {value!r}, must be one of {known}{instead}")
    return CONVENTIONS[name]
