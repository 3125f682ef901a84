"""Parameters and state of a whole model beside those expected, step after step."""

import numpy as np

from compare import largest


class Trail:
    """Checks each step within a tolerance, in units of the largest number a tensor has held.

    Begun with the parameters before the first step.
    """

    def __init__(self, params, tolerance):
        self._largest = {name: largest(param) for name, param in params.items()}
        self._tolerance = tolerance
        self._t = 0

    def check(self, params, expected):
        """Params, name -> array, must be close to those expected, and of the same names."""
        self._t += 1
        assert params.keys() == expected.keys() == self._largest.keys()
        for name, theirs in expected.items():
            unit = self._largest[name] = max(self._largest[name], largest(theirs))
            error = largest(params[name] - theirs)
            assert error <= self._tolerance * unit, (
                f"{name}, step {self._t}: off by {error:.3g}, its largest was {unit:.3g}"
            )


def assert_state_close(mine, expected, rtol):
    """Of a tensor, the same kinds of arrays; means relative to each, m to its largest number."""
    assert mine.keys() == expected.keys()
    for kind, theirs in expected.items():
        atol = rtol * largest(theirs) if kind == "m" else 0
        np.testing.assert_allclose(mine[kind], theirs, rtol, atol, err_msg=kind)
