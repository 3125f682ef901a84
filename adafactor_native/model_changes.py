"""The methods of an optimizer that change a model in the middle of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from adafactor_native import changing
from adafactor_native.model import Model
from adafactor_native.param_groups import Array


class ModelChanges(Model):
    """A model whose tensors may come and go, and be of other shapes."""

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add tensors to the model, behind the others, with a state of zeros.

        Parameters
        ----------
        group : mapping
            "params" (a mapping, a sequence, a tree or an array), "copies" if there are, and
            hyper-parameters, which count more than those given to the optimizer.

        Raises
        ------
        TypeError, ValueError
            As by the constructor. Nothing is changed.
        """
        if not isinstance(group, Mapping):
            raise TypeError(f"group is a {type(group).__name__}, must be a mapping with 'params'")
        self._require_one_process("opt.add_param_group")
        self._require_no_open_step("which is of the tensors as they are")
        self._add_groups(self._new_groups([("group[{!r}]", group)]))

    def replace(self, name: str, array: Array, *, copy: Array | None = None) -> None:
        """Step another array of the same shape from now on, with the state of the one before.

        This is what to say after ``model["w"] = new``. Masters and lower halves follow the new values
        where they are not those of the old array, and the copy is written, rounded to nearest.

        Parameters
        ----------
        name : str
            Which of `names`.
        array : ndarray
            Of the parameter's shape and dtype, any strides; kept, and overwritten by steps.
        copy : ndarray or None
            Instead of the tensor's old one of `copies`, which stays where it is None.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown, or an array is not such a one, read-only, or shares memory with
            others of the model. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.
        """
        self._require_one_process("opt.replace")
        self._tensors.alone(lambda: changing.replace_param(self, name, array, copy))

    def resize(self, name: str, array: Array, axis: int = 0, *, copy: Array | None = None) -> None:
        """Step an array with more or fewer lines from now on: a vocabulary that grew.

        Lines that were there keep their state: the first ones, where the array is shorter. The running
        means of new lines are the means of the old ones, for after zeros the first step would be too
        large by 1 / sqrt(1 - beta2). Their first moments are 0, and their masters the new values.
        V of the elements that stay does not change; where other axes are factored in the new shape,
        it is factored anew. The tensor's count of steps stays, but for arrays without elements.

        Parameters
        ----------
        name : str
            Which of `names`.
        array : ndarray
            Of the parameter's dtype, and of its shape but for `axis`; kept, and overwritten by
            steps. Its values count; those of the old array are not copied to it.
        axis : int, default 0
            Any axis, also a batched one; a negative one counts from the last.
        copy : ndarray or None
            An array of the new shape, where the tensor has one of `copies`; it is written.

        Raises
        ------
        TypeError, ValueError
            As by `replace`. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import Optimizer
        >>> model = {"embedding": np.ones((3, 2))}
        >>> opt = Optimizer(model)
        >>> report = opt.step({"embedding": np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])})
        >>> model["embedding"] = np.vstack([model["embedding"], np.zeros((1, 2))])
        >>> opt.resize("embedding", model["embedding"])
        >>> opt.state["embedding"]["exp_row"].round(3)
        array([1.   , 4.   , 9.   , 4.667])
        """
        self._require_one_process("opt.resize")
        self._tensors.alone(lambda: changing.resize(self, name, array, axis, copy))

    def remove(self, name: str) -> None:
        """Let a tensor leave the model and its group; names, state and counts of others stay.

        A group that it was alone in stays, without tensors. The names of a sequence stay the
        positions that they were.

        Parameters
        ----------
        name : str
            Which of `names`.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown, or the tensor the only one. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.
        """
        self._require_one_process("opt.remove")
        self._tensors.alone(lambda: changing.remove(self, name))

    def reset(
        self,
        name: str,
        rows: int | slice | Sequence[int] | npt.NDArray[Any] | None = None,
        axis: int = 0,
    ) -> None:
        """Start the state of a tensor anew, or of some of its rows: re-initialised neurons.

        Params are not written to. Masters become what they are now (split: the lower halves become
        zeros), and the copy is written, rounded to nearest; with `rows`, both only there.

        Parameters
        ----------
        name : str
            Which of `names`.
        rows : int, slice, sequence of int, ndarray of int or bool, or None
            Which lines. Their running means become the means of the other lines, and their first
            moments 0, as `resize` gives to new lines; V of other lines does not change. None, or all
            lines: the tensor's whole state is one of zeros, and its count of steps 0.
        axis : int, default 0
            Of which axis; 1 for the columns of a matrix.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown, or there are no such lines. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.
        """
        self._require_one_process("opt.reset")
        self._tensors.alone(lambda: changing.reset(self, name, rows, axis))
