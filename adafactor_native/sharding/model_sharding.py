"""The methods of an optimizer whose tensors are spread over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adafactor_native.halves import bfloat16
from adafactor_native.model import Model
from adafactor_native.param_groups import ParamGroup, new_tensor, read_given, require_known_names
from adafactor_native.report import StepReport
from adafactor_native.sharding.agreed_errors import together
from adafactor_native.sharding.agreement import AgreedTensor, agreed_groups, describe_model
from adafactor_native.sharding.all_gather import all_gather
from adafactor_native.sharding.channel import Channel
from adafactor_native.sharding.engine import engine_of
from adafactor_native.sharding.exchange import (
    N_HEADER,
    Header,
    ShardedStep,
    hash_of,
    take_sharded_step,
)
from adafactor_native.sharding.ranks import Ranks
from adafactor_native.sharding.tensor_shard import number_lines

if TYPE_CHECKING:
    from adafactor_native._runtime import _core
    from adafactor_native.param_groups import GivenGroup


class ModelSharding(Model):
    """A model that lies in pieces on several ranks."""

    def _join(
        self,
        comm: Any,
        shards: Mapping[str, Any] | None,
        timeout: float | None,
        read: Callable[[], Sequence[tuple[str, Mapping[str, Any]]]],
    ) -> None:
        """Take this rank's tensors, and agree with all other ranks on what they are together.

        `read` takes the settings and returns the groups as they were given. Its errors, and all
        others, are raised by all ranks.
        """
        channel = Channel(engine_of(comm, timeout))

        def described() -> tuple[list[GivenGroup], Any]:
            groups = read()
            self._require_shardable()
            given = read_given(groups, self._convention, self._defaults, ())
            settings = {**self._settings(), "whether comm has subset": channel.has_groups}
            return given, describe_model(given, shards or {}, settings)

        given, description = together(channel, described)
        everyones = all_gather(channel, description)
        agreed = agreed_groups(everyones, channel.rank, given)
        everything = {tensor.shard.name: tensor.shard for group in agreed for tensor in group}
        together(channel, lambda: [shard.shared_lines for shard in everything.values()])
        number_lines(channel, everything.values())
        n_first = together(channel, lambda: self._take_groups(given, agreed, channel))
        here = {name for group in given for name in group.arrays}
        self._ranks = Ranks(
            channel,
            everything,
            frozenset(everything.keys() - here),
            n_first,
        )

    def _take_groups(
        self,
        given: Sequence[GivenGroup],
        agreed: Sequence[Sequence[AgreedTensor]],
        channel: Channel,
    ) -> int:
        """Make all tensors, and return the length of the first array that a step exchanges."""
        self._add_groups(self._shared_groups(given, agreed))
        plan = self._plan_with([(0.0, 0.0)] * len(self._groups))
        is_exact = self._sums == "exact"
        return int(self._tensors.mute_round(plan, N_HEADER, is_exact, channel.bucket_length).size)

    def _require_shardable(self) -> None:
        """Raise an error that names what does not go together with ranks."""
        if self.atomic != "all":
            raise ValueError(
                f"atomic is {self.atomic!r}, must be 'all' with comm and with sums='exact': a step is taken on all ranks or none"
            )
        if self._carry_param_rms:
            raise ValueError(
                "carry_param_rms is True, must be False with comm and with sums='exact'"
            )

    def _settings(self) -> dict[str, Any]:
        """Return what must be the same on all ranks, beside the groups' hyper-parameters."""
        return {
            "convention": self.convention,
            "nonfinite": self.nonfinite,
            "atomic": self.atomic,
            "max_grad_norm": self.max_grad_norm,
            "max_skipped": self.max_skipped,
            "skip_above": self.skip_above,
            "seed": self.seed,
            "sums": self._sums,
        }

    def _shared_groups(
        self, given: Sequence[GivenGroup], agreed: Sequence[Sequence[AgreedTensor]]
    ) -> list[ParamGroup]:
        """Return groups of all tensors of all ranks, those of other ranks as arrays without elements."""
        groups = []
        for (arrays, copies, switches), tensors in zip(given, agreed):
            made = [
                new_tensor(
                    tensor.shard.name,
                    _array_of(arrays, tensor, tensor.dtype),
                    switches,
                    None
                    if tensor.copy_dtype is None
                    else _array_of(copies, tensor, tensor.copy_dtype),
                    tensor.shard,
                    tensor.decays,
                )
                for tensor in tensors
            ]
            groups.append(ParamGroup(made, switches, self._convention, self._cell))
        names = {name for group in groups for name in group["names"]}
        for group in groups:
            require_known_names(group["weight_decay_mask"], names)
        return groups

    def _sharded_step(
        self, ranks: Ranks, ordered: Callable[[], tuple[Sequence[Any], float, float]]
    ) -> StepReport:
        """Take one step together with all other ranks.

        `ordered` returns the gradients in the order of `names`, what they are divided by, and what
        those that were measured are. Its errors are raised by all ranks.
        """
        ranks.channel.require_not_lost()
        tensors = self._tensors

        def begin() -> tuple[ShardedStep[StepReport], Header]:
            self._require_shardable()
            grads, scale, measured_scale = ordered()
            plan = self._cell.plan or self._new_plan()
            header = self._header(plan, scale, measured_scale)
            make_report = partial(StepReport, self._names, lr=self._cell.lr)
            step: ShardedStep[StepReport] = tensors.begin_sharded_step(
                plan,
                grads,
                scale,
                make_report,
                self._followed,
                N_HEADER,
                0,
                measured_scale,
                self._sums == "exact",
                self._params_are_new,
                ranks.channel.bucket_length,
            )
            return step, header

        return take_sharded_step(
            ranks.channel,
            begin,
            lambda: np.full(ranks.n_first, -np.finfo(np.float64).max),
            raises_faults=self.nonfinite == "raise",
        )

    def _header(self, plan: _core.Plan, scale: float, measured_scale: float) -> Header:
        """Return what this rank says of the next step; hashed once for as long as its plan holds."""
        key = (plan, scale, measured_scale, self.max_skipped)
        settings = partial(self._at_this_step, scale, measured_scale)
        if self._cell.agreed is None or self._cell.agreed[0] != key:
            self._cell.agreed = (key, hash_of(settings()))
        return Header(self.t, self._cell.agreed[1], settings)

    def _at_this_step(self, scale: float, measured_scale: float) -> dict[str, Any]:
        """Return the hyper-parameters of the next step, which must be the same on all ranks."""
        values = {**self._settings(), "grad_scale": scale, "grad_scale of measure": measured_scale}
        for g, (group, lr) in enumerate(zip(self._groups, self._cell.lr)):
            values[f"lr of group {g}"] = lr
            values.update(
                {
                    f"{name} of group {g}": value
                    for name, value in group.switches.items()
                    if name != "weight_decay_mask" and not callable(value)
                }
            )
        return values


def require_alone(shards: Any, timeout: Any) -> None:
    """Raise a ValueError if something is said of other ranks, and there are none."""
    for name, value in (("shards", shards), ("timeout", timeout)):
        if value is not None:
            raise ValueError(f"{name} is given, must be None without comm")


def _array_of(arrays: Mapping[str, Any], tensor: AgreedTensor, dtype: str) -> Any:
    """Return the array of a tensor that was given, or one without elements."""
    given = arrays.get(tensor.shard.name)
    if given is not None and given.shape == tensor.shard.local_shape:
        return given
    like = bfloat16("the dtype on another rank") if dtype == "bfloat16" else np.dtype(dtype)
    return np.zeros(tensor.shard.local_shape, like)
