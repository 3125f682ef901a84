"""The methods of an optimizer that write its state, and take it over again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from adafactor_native import hyperparameters as hyper
from adafactor_native import state_dict, state_files
from adafactor_native.elastic import LoadReport, Rename
from adafactor_native.model import Model
from adafactor_native.param_groups import Array
from adafactor_native.sharding.agreed_errors import together


class ModelStates(Model):
    """A model whose run may end, and go on elsewhere."""

    def state_dict(self, params: bool = False, *, gather: bool = False) -> dict[str, Array]:
        """Return copies of all that is remembered, as a flat dict of arrays.

        It goes as it is into ``numpy.savez(path, **state)`` and
        ``safetensors.numpy.save_file(state, path)``, and comes back by ``dict(numpy.load(path))``
        and ``safetensors.numpy.load_file(path)``.

        Parameters
        ----------
        params : bool
            Whether the parameters are part of it, so that one file is the whole checkpoint. All
            arrays are copies: until they are dropped, the memory for the parameters is needed twice.
        gather : bool, default False
            With `comm`: whether every rank gets the state of the whole model, as one process has it,
            which loads on any number of ranks, or without `comm`. Then all ranks must call it. If not,
            a rank gets what it has, with its place in the whole; a list of those of all ranks
            loads likewise. Without `comm` they are the same.

        Returns
        -------
        dict of str to ndarray
            "exp_row/name", "exp_col/name", "v/name", "m/name", "master/name", "low/name" and
            "param/name", those that there are, C-contiguous, bfloat16 as the uint16 of its bits,
            for neither format knows it; "t", the steps of each tensor, int64; and "header", uint8:
            JSON with version, convention, hyper-parameters, counts and what each tensor is.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import Optimizer
        >>> opt = Optimizer({"w": np.ones((2, 3)), "b": np.ones(3)}, lr=0.1)
        >>> report = opt.step({"w": np.ones((2, 3)), "b": np.ones(3)})
        >>> state = opt.state_dict()
        >>> sorted(state)
        ['exp_col/w', 'exp_row/w', 'header', 't', 'v/b']
        >>> other = Optimizer({"w": np.ones((2, 3)), "b": np.ones(3)})
        >>> other.load_state_dict(state)
        >>> other.t, other.param_groups[0]["lr"]
        (1, 0.1)
        """
        with_params = hyper.boolean("params", params)
        if hyper.boolean("gather", gather) and self._ranks is not None:
            return self._tensors.alone(lambda: state_dict.gathered_state_dict(self, with_params))
        return self._tensors.alone(lambda: state_dict.state_dict(self, with_params))

    def load_state_dict(
        self,
        state: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        *,
        strict: bool = True,
        rename: Rename | None = None,
        keep: Collection[str] = (),
        convert: bool = False,
    ) -> LoadReport | None:
        """Continue where `state_dict` was called, with the same bits.

        Hyper-parameters are taken over, `max_grad_norm` among them, and `skip_above` with its norms,
        where it was a number; a callable stays this optimizer's own, and must have been one. `nonfinite`, `atomic`, `max_skipped`,
        `num_threads` and `carry_param_rms` stay as they are. So do params, unless the state has them.

        Parameters
        ----------
        state : mapping of str to ndarray, or sequence of these
            What `state_dict` returned, from anywhere; its values are copied. Tensors are found by
            name, in any order. A sequence has what each rank has saved of itself, of all ranks in any
            order. With `comm` all ranks must load the same state, of which each takes its part.
        strict : bool, default True
            Whether the state must have exactly these tensors. If not, those that have the same name,
            shape, dtype, axes, group and kinds of state are loaded, others stay as they are; where
            none is loaded it is an error.
        rename : mapping or callable of str to str, or None
            What a name in the state is here: ``lambda name: name.removeprefix("module.")``. A
            mapping leaves other names as they are.
        keep : collection of str
            What stays this optimizer's: switches by name ("lr", "schedule", "clip_threshold"),
            "weight_decay_mask", "max_grad_norm", "skip_above", "seed", and "groups": which groups there are, which
            tensors are in them, and all their switches.
        convert : bool, default False
            Whether a state that is stored otherwise is converted: first moments of another dtype,
            or new (they begin at zero) or gone; masters switched on (they are the param), off, or
            from one kind to the other (exact if the state has the params); running means of
            another `state_dtype`, exactly to float64 and rounded to nearest to float32.

        Returns
        -------
        LoadReport or None
            With ``strict=False`` what was loaded, missing, unexpected and mismatched.

        Raises
        ------
        TypeError, ValueError
            If an array is missing, unknown, of the wrong dtype or shape, or the state is of another
            format version, convention, or model: other names, shapes, dtypes, groups, factored axes,
            masks, or another choice of callables; or holds numbers that no step leaves, unless
            `nonfinite` is "propagate"; or if an array of ours is read-only. The message names it,
            and nothing is changed.
        RuntimeError
            If another thread is in a step of this object.

        Notes
        -----
        Copies of all arrays are checked before the first of ours is written, so that a load takes
        as much memory again as the state; then all are written without a byte code of Python between,
        so that no signal handler of CPython sees or leaves a mixture. A thread that begins a step
        meanwhile is not kept out.

        Where params hold other weights than those the state was saved beside, their masters follow
        the params at the next step; `copies` are written if the state has the params.
        """
        return state_dict.load_state_dict(
            self,
            state,
            hyper.boolean("strict", strict),
            rename,
            keep,
            hyper.boolean("convert", convert),
        )

    def save(self, path: state_files.Path, params: bool = False, *, gather: bool = False) -> None:
        """Write what `state_dict` returns to a file, array by array, without a copy of it all.

        The file is what ``numpy.savez`` or ``safetensors.numpy.save_file`` of it would hold, and can
        be read by ``numpy.load`` or ``safetensors.numpy.load_file``. It is written beside `path`, as a
        file whose name begins with a dot and ends in ".tmp", to the disk, and only then put in its
        place: a crash at any moment leaves the old file or the new one whole. An error removes the
        file that was begun; what a killed process has left of one can be deleted.

        Parameters
        ----------
        path : str or path-like
            Where to; it ends in ".npz" or ".safetensors", which chooses the format. A file that is
            there is replaced and its permissions are kept.
        params : bool, default False
            Whether the parameters are part of it, so that one file is the whole checkpoint.
        gather : bool, default False
            With `comm`: whether rank 0 writes the state of the whole model, which all ranks must call;
            the others return when the file is there. If not, each rank that calls it writes what it
            has, to a path of its own.

        Raises
        ------
        TypeError, ValueError
            If `path` ends otherwise, or a tensor's name is one that a ".npz" cannot hold: with a
            zero byte, of more than 65,000 bytes, or "name.npy" beside "name".
        OSError
            If the file cannot be written.
        RuntimeError
            If another thread is in a step of this object; none may begin one meanwhile.

        Notes
        -----
        Memory above the model: nothing for arrays in C order; one array for any other.

        Examples
        --------
        >>> import numpy as np, os, tempfile
        >>> from adafactor_native import Optimizer
        >>> opt = Optimizer({"w": np.ones((2, 3))}, lr=0.1)
        >>> report = opt.step({"w": np.ones((2, 3))})
        >>> other = Optimizer({"w": np.zeros((2, 3))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "checkpoint.npz"), params=True)
        ...     other.load(os.path.join(folder, "checkpoint.npz"))
        >>> other.t, bool((other.params["w"] == opt.params["w"]).all())
        (1, True)
        """
        with_params = hyper.boolean("params", params)
        if hyper.boolean("gather", gather) and self._ranks is not None:
            channel = self._ranks.channel
            whole = self.state_dict(with_params, gather=True)
            together(channel, lambda: None if channel.rank else state_files.save(path, whole))
            return
        self._tensors.alone(
            lambda: state_files.save(path, state_dict.live_arrays(self, with_params))
        )

    def load(
        self,
        path: state_files.Path | Sequence[state_files.Path],
        *,
        strict: bool = True,
        rename: Rename | None = None,
        keep: Collection[str] = (),
        convert: bool = False,
    ) -> LoadReport | None:
        """Continue where `save` was called, with the same bits.

        Parameters
        ----------
        path : str or path-like, or list or tuple of these
            A file that `save`, ``numpy.savez`` or ``safetensors.numpy.save_file`` wrote; it ends in
            ".npz" or ".safetensors". Several are what each rank has saved of itself.
        strict, rename, keep, convert
            As `load_state_dict` takes them.

        Returns
        -------
        LoadReport or None
            With ``strict=False`` what was loaded, missing, unexpected and mismatched.

        Raises
        ------
        TypeError, ValueError
            If the file is not whole or not such a file, or as by `load_state_dict`. The message says
            what is wrong, and nothing is changed.
        OSError
            If the file cannot be read.
        RuntimeError
            If another thread is in a step of this object.

        Notes
        -----
        Nothing in the file is executed, and no more is allocated than the file's size. A compressed
        ".npz" is refused: ``opt.load_state_dict(dict(numpy.load(path)))`` reads it. Memory above the
        model: that of the file, until all of it is checked and written. Reading straight into the
        state, after a first pass of checks, would need none; but then a disk that fails, a file that
        another process cuts, or a signal in the middle would leave a mixture of two states.
        """
        choices = (
            hyper.boolean("strict", strict),
            rename,
            keep,
            hyper.boolean("convert", convert),
        )
        return state_dict.load_state_dict(
            self, state_files.StateFiles(path), *choices, is_ours=True
        )
