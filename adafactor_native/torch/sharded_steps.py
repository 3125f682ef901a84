"""Steps of parameters that lie in pieces on several ranks: all of them take part, and step alike."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.utils.weak import WeakIdKeyDictionary

from adafactor_native.report import SKIPPED, StepReport
from adafactor_native.sharding.agreed_errors import together
from adafactor_native.sharding.channel import Channel
from adafactor_native.sharding.exchange import (
    N_HEADER,
    Header,
    ShardedStep,
    hash_of,
    take_sharded_step,
)
from adafactor_native.sharding.tensor_shard import TensorShard, number_lines
from adafactor_native.sharding.torch_engine import TorchEngine
from adafactor_native.torch.masters import followed
from adafactor_native.torch.reading import increment_versions
from adafactor_native.torch.settings import Settings, is_schedule
from adafactor_native.torch.sharded_model import Held, ShardedModel, model_of, muted_model
from adafactor_native.torch.sharded_params import Cut, array_of, is_dtensor, local_grad, local_of
from adafactor_native.torch.sharded_plans import at_this_step, plan_of
from adafactor_native.torch.sharded_state import CutState, factored_axes
from adafactor_native.torch.state import Kept, StateNames, count_of
from adafactor_native.torch.stepping import all_parts, note_skipped

if TYPE_CHECKING:
    from adafactor_native.torch.fsdp1_ranges import FlatParam
    from adafactor_native.torch.optimizer import NativeOptimizer


class GivenParam(NamedTuple):
    """A parameter in pieces, as an optimizer has it.

    Attributes
    ----------
    place : int
        Its group's index.
    name : str or int
        Its name, or else its position among all.
    param : Tensor
    """

    place: int
    name: str | int
    param: torch.Tensor


class Taken(enum.Enum):
    """What has become of a step."""

    step = enum.auto()
    state_only = enum.auto()  # its state was all that was asked for
    left_out = enum.auto()  # a GradScaler has found an infinity


class ShardedSteps:
    """The steps of one optimizer whose parameters lie in pieces."""

    def __init__(self) -> None:
        self._flat: Any = WeakIdKeyDictionary()  # by parameter: FlatParam, or None of a whole one
        self._cuts: Any = WeakIdKeyDictionary()  # Cut by parameter, and what it was told from
        self._channels: dict[tuple[int, ...], Channel] = {}
        self._states: Any = WeakIdKeyDictionary()  # CutState by parameter, and what it was made of
        self._waiting: Any = WeakIdKeyDictionary()  # states of parameters without a gradient so far
        self._model: ShardedModel | None = None
        self._agreed: tuple[dict[str, Any], int] | None = None  # the last settings, and their hash

    def take_flat(self, found: Sequence[tuple[torch.Tensor, FlatParam | None]]) -> None:
        """Know these parameters of FSDP1 from now on."""
        for param, flat in found:
            self._flat[param] = flat

    def is_cut(self, param: torch.Tensor) -> bool:
        """Whether a parameter lies in pieces, as far as is known."""
        return is_dtensor(param) or self._flat.get(param) is not None

    def require_known(self, name: str | int, param: torch.Tensor) -> None:
        """Raise a ValueError where FSDP1 has cut a parameter, and nobody has said how."""
        if param not in self._flat:
            raise ValueError(
                f"params[{name!r}] is a part of a parameter of FullyShardedDataParallel, whose shape it does "
                "not tell: call opt.take_flat_shards(module) with the wrapped module, or use fully_shard"
            )

    def state_of(
        self, opt: NativeOptimizer, kept: Kept, name: str | int, param: torch.Tensor
    ) -> CutState:
        """Return what the state of a parameter has to be, in a group that keeps these."""
        cut = self._cut_of(name, param)
        made_of = cut, kept, param.dtype
        known = self._states.get(param)
        if known is not None and known[0] == made_of:
            state: CutState = known[1]
            return state
        shard = _shard_of(name, cut, kept)
        state = CutState(opt._dialect.names, kept, f"params[{name!r}]", param, cut, shard)
        self._states[param] = made_of, state
        return state

    def forgive(self) -> None:
        """Step again after an exchange that failed: a state was loaded on all ranks."""
        for channel in self._channels.values():
            if channel.is_lost:
                channel.renew()
                channel.is_lost = False
        self._model = None

    def take(self, opt: NativeOptimizer) -> Taken:
        """Take one step of all parameters that lie in pieces, together with all other ranks."""
        params = self._params(opt)
        if not params:
            return Taken.step
        channel = self._channel(params)
        channel.require_not_lost()
        before = [opt._settings_before(k, group) for k, group in enumerate(opt.param_groups)]
        number_lines(  # what is wrong here is wrong on all ranks
            channel,
            [
                self.state_of(opt, before[place].kept, name, param).shard
                for place, name, param in params
            ],
        )
        if _found_inf(opt, channel):
            return Taken.left_out
        if self._only_allocates(opt, channel):
            together(channel, lambda: self._allocate(opt, params))
            return Taken.state_only

        def begin() -> tuple[ShardedStep[StepReport], Header]:
            every = [opt._settings(k, group) for k, group in enumerate(opt.param_groups)]
            held = [self._held(opt, every, *each) for each in params]
            given = [local_grad(one.param) if one.shard.is_owner else None for one in held]
            model = self._model_of(opt, held)
            grads = [None if grad is None else array_of(grad.resolve_neg()) for grad in given]
            t = model.tensors.t + 1
            rates = [opt._rates(one, group, t) for one, group in zip(every, opt.param_groups)]
            plan, settings = plan_of(opt, model, every, rates), at_this_step(opt, every, rates)
            scale = getattr(opt, "grad_scale", None)
            step: ShardedStep[StepReport] = model.tensors.begin_sharded_step(
                plan,
                grads,
                1.0 if scale is None else float(scale),
                partial(
                    StepReport, tuple(one.name for one in held), lr=tuple(lr for lr, _ in rates)
                ),
                partial(self._followed, opt, model),
                N_HEADER,
                0,
            )
            if self._agreed is None or self._agreed[0] != settings:
                self._agreed = settings, hash_of(settings)
            return step, Header(model.tensors.t, self._agreed[1], lambda: settings)

        report = take_sharded_step(
            channel,
            begin,
            lambda: self._mute(opt, params, before),
            raises_faults=opt.options.nonfinite == "raise",
        )
        self._note(opt, channel, report)
        return Taken.step

    def _note(self, opt: NativeOptimizer, channel: Channel, report: StepReport) -> None:
        """Write to the optimizer's state what a step has left."""
        model = self._model
        assert model is not None
        names = opt._dialect.names
        counts = model.tensors.counts().tolist()
        stepped = [count != before for count, before in zip(counts, model.counts)]
        for one, count, is_stepped, rms in zip(model.held, counts, stepped, report.rms_param):
            if not is_stepped:
                continue
            mine = opt.state[one.param]
            if not mine:
                mine.update(one.values)
            if names.counts_with_tensors:
                mine[names.step].fill_(float(count))
            else:
                mine[names.step] = count
            if names.rms_param is not None and not math.isnan(rms):
                mine[names.rms_param] = float(rms)
        model.counts = counts
        changed = [one for one, each in zip(model.held, stepped) if each]
        increment_versions([one.param for one in changed] + [one.local for one in changed])
        self._share_lines(channel, changed, names)
        opt.grad_norm = report.grad_norm
        if report.flags & SKIPPED and opt.options.nonfinite == "skip":
            note_skipped(opt)

    def _share_lines(self, channel: Channel, changed: Sequence[Held], names: StateNames) -> None:
        """Give ranks without elements the means of the lines that they have copies of.

        Those are no business of a step, but a checkpoint may take any rank's.
        """
        lacking = [
            (one, key)
            for one in changed
            for key in (names.row, names.col)
            if one.state.is_copied_to_nothing(key)
        ]
        if not lacking:
            return
        parts = []
        for one, key in lacking:
            means = np.full(one.state.places[key].shape, -np.inf)
            if one.shard.is_owner:
                means[one.state.own_slices(key)] = array_of(local_of(one.values[key]))
            parts.append(means)
        together_ = np.concatenate([part.reshape(-1) for part in parts])
        channel.all_reduce(together_, "max")
        pieces = np.split(together_, np.cumsum([part.size for part in parts])[:-1])
        for (one, key), piece, part in zip(lacking, pieces, parts):
            if not one.shard.is_owner:
                local = array_of(local_of(one.values[key]))
                local[...] = piece.reshape(part.shape)[one.state.own_slices(key)]

    def _params(self, opt: NativeOptimizer) -> list[GivenParam]:
        """Return each parameter in pieces; those of one group and dtype follow each other."""
        cut = [
            GivenParam(part.place, part.name_of(k), p)
            for part in all_parts(opt)
            for k, p in enumerate(part.params)
            if self.is_cut(p) and (p.requires_grad or p.grad is not None)
        ]
        return sorted(cut, key=lambda each: (each.place, str(each.param.dtype)))

    def _channel(self, params: Sequence[GivenParam]) -> Channel:
        """Return what connects the ranks of all parameters."""
        ranks: tuple[int, ...] | None = None
        for _, name, param in params:
            own = self._cut_of(name, param).ranks
            if ranks is not None and own != ranks:
                raise ValueError(
                    f"params[{name!r}] lies on the ranks {list(own)}, and others on {list(ranks)}: all "
                    "parameters of an optimizer must be on the same ranks"
                )
            ranks = own
        assert ranks is not None
        if ranks not in self._channels:
            group = None
            if len(ranks) != dist.get_world_size():
                group = dist.new_group(list(ranks), use_local_synchronization=True)
            self._channels[ranks] = Channel(TorchEngine(group))
        return self._channels[ranks]

    def _cut_of(self, name: str | int, param: torch.Tensor) -> Cut:
        known = self._cuts.get(param)
        spec = param._spec if is_dtensor(param) else None
        if known is not None and known[0] == (spec, param.shape):
            cut: Cut = known[1]
            return cut
        if spec is not None:
            from adafactor_native.torch.dtensor_boxes import boxes_of

            cut = Cut(tuple(param.shape), boxes_of(f"params[{name!r}]", param), param.detach())
        else:
            flat = self._flat[param]
            cut = Cut(flat.shape, flat.ranges, None)
        self._cuts[param] = (spec, param.shape), cut
        return cut

    def _held(
        self,
        opt: NativeOptimizer,
        every: Sequence[Settings],
        place: int,
        name: str | int,
        param: torch.Tensor,
    ) -> Held:
        """Return a parameter with its state as it is now; changes nothing that others see."""
        shown = f"params[{name!r}]"
        if param.device.type != "cpu" or not param.is_floating_point():
            raise TypeError(
                f"{shown} is a {type(param).__name__} of {param.dtype} on {param.device}, must be of "
                "floating point in this machine's memory"
            )
        state = self.state_of(opt, every[place].kept, name, param)
        state.require_local_shape()
        mine = opt.state.get(param)
        if mine:
            values = {**mine, **state.taken_over(mine)}
            if any(values[key] is not mine.get(key) for key in values):
                mine.update(values)
        else:
            before = self._waiting.get(param)
            if before is None or before[0] is not state:
                before = self._waiting[param] = state, state.begun()
            values = before[1]
        return Held(place, str(name), param, local_of(param), state, values)

    def _model_of(self, opt: NativeOptimizer, held: list[Held]) -> ShardedModel:
        """Return the native tensors, made anew where anything lies elsewhere than before."""
        model = self._model
        if model is None or not model.is_of(held):
            model = self._model = model_of(held, opt._dialect.names)
        names = opt._dialect.names
        counts = [count_of(one.values[names.step], names.step) for one in held]
        most = max(opt._steps_taken(), *counts)
        if counts != model.counts or most != model.tensors.t:
            model.tensors.set_counts(most, 0, counts)
            model.counts = counts
        return model

    def _mute(
        self,
        opt: NativeOptimizer,
        params: Sequence[GivenParam],
        before: Sequence[Settings],
    ) -> Any:
        """Return the first array of a rank that cannot step: as long as that of the others.

        That does not depend on values of groups, which may be what is wrong: so `before` it is.
        """
        muted = [
            (place, param.dtype, str(name), self.state_of(opt, before[place].kept, name, param))
            for place, name, param in params
        ]
        model = muted_model(muted, opt._dialect.names)
        plan = plan_of(opt, model, before, [(0.0, 0.0)] * len(before))
        return model.tensors.mute_round(plan, N_HEADER)

    def _followed(
        self, opt: NativeOptimizer, model: ShardedModel, position: int
    ) -> npt.NDArray[Any] | None:
        """Return what lies beside a half-precision parameter if it followed, or None where it does."""
        one = model.held[position]
        beside = _beside(one, opt._dialect.names)
        if beside is None:
            return None
        stochastic = opt._settings(one.place, opt.param_groups[one.place]).is_stochastic
        new = followed(one.local.detach(), beside, stochastic)
        return None if new is None else array_of(new)

    def follow_all(self, opt: NativeOptimizer) -> None:
        """Let all masters follow the parameters as they are."""
        model, self._model = self._model, None
        for position, one in enumerate([] if model is None else model.held):
            assert model is not None
            new = self._followed(opt, model, position)
            beside = _beside(one, opt._dialect.names)
            if new is not None and beside is not None:
                array_of(beside)[...] = new

    def _only_allocates(self, opt: NativeOptimizer, channel: Channel) -> bool:
        """Whether a step is to make the state and do nothing else, as distributed checkpoints ask."""
        if any(opt.state.values()):
            return False
        for group in opt.param_groups:
            lr = group["lr"]
            if lr is None or is_schedule(lr) or float(lr) != 0:
                return False

        def any_here() -> bool:
            grads = [local_grad(param) for group in opt.param_groups for param in group["params"]]
            return any(grad is not None and bool(grad.any()) for grad in grads)

        any_of_all = np.array([float(together(channel, any_here))])
        channel.all_reduce(any_of_all, "max")
        return bool(any_of_all[0] == 0)

    def _allocate(self, opt: NativeOptimizer, params: Sequence[GivenParam]) -> None:
        every = [opt._settings(k, group) for k, group in enumerate(opt.param_groups)]
        made = [self._held(opt, every, *each) for each in params]
        for one in made:
            if one.param.grad is not None:
                opt.state[one.param].update(one.values)


def _beside(one: Held, names: StateNames) -> torch.Tensor | None:
    """Return this rank's own master or lower halves, if there are."""
    values = one.local_values()
    return values.get(names.master, values.get(names.low))


def _shard_of(name: str | int, cut: Cut, kept: Kept) -> TensorShard:
    pieces = [cut.pieces[rank] for rank in cut.ranks]
    axes = factored_axes(kept, f"params[{name!r}]", cut)
    return TensorShard(str(name), cut.shape, pieces, cut.ranks.index(dist.get_rank()), axes)


def _found_inf(opt: NativeOptimizer, channel: Channel) -> bool:
    """Whether a GradScaler has found an infinity on any rank."""
    found = getattr(opt, "found_inf", None)
    if found is None:
        return False
    any_of_all = np.array([float(found)])
    channel.all_reduce(any_of_all, "max")
    return bool(any_of_all[0] != 0)
