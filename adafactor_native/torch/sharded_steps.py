"""Steps of parameters that lie in pieces on several ranks: all of them take part, and step alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from adafactor_native.sharding.engine import OneRank
from adafactor_native.sharding.exchange import Header, ShardedStep, hash_of, take_sharded_step
from adafactor_native.sharding.tensor_shard import number_lines
from adafactor_native.sharding.torch_engine import TorchEngine
from adafactor_native.torch import others
from adafactor_native.torch.masters import followed, write
from adafactor_native.torch.reading import increment_versions
from adafactor_native.torch.settings import Settings, is_schedule
from adafactor_native.torch.sharded_agreement import Agreement, Layout
from adafactor_native.torch.sharded_cuts import Cuts
from adafactor_native.torch.sharded_header import N_SLOTS, EndedEarly, StepHeader, Taken
from adafactor_native.torch.sharded_model import Held, ShardedModel, model_of, muted_model
from adafactor_native.torch.sharded_params import PLAIN, array_of, is_dtensor, local_grad, local_of
from adafactor_native.torch.sharded_plans import at_this_step, plan_of
from adafactor_native.torch.sharded_state import CutState
from adafactor_native.torch.state import StateNames, count_of
from adafactor_native.torch.stepping import all_parts, note_skipped

if TYPE_CHECKING:
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


class ShardedSteps:
    """The steps of one optimizer whose parameters lie in pieces."""

    def __init__(self) -> None:
        self.cuts = Cuts()
        self._agreement = Agreement()
        self._channels: dict[tuple[int, ...], Channel] = {}
        self._waiting: Any = WeakIdKeyDictionary()  # states of parameters without a gradient so far
        self._seen: Any = WeakIdKeyDictionary()  # versions of parameters that something lies beside
        self._model: ShardedModel | None = None
        self._digest: tuple[dict[str, Any], int] | None = None  # the last settings, and their hash

    def forgive(self) -> None:
        """Step again after an exchange that failed: a state was loaded on all ranks."""
        for channel in self._channels.values():
            if channel.is_lost:
                channel.renew()
                channel.is_lost = False
                self._agreement.forget()
        self._model = None

    def take(self, opt: NativeOptimizer, require: Callable[[], None]) -> Taken:
        """Take one step of all parameters that lie in pieces, together with all other ranks.

        With exact sums plain ones are pieces, too: whole ones, of this rank alone.

        Parameters
        ----------
        opt : NativeOptimizer
        require : callable
            Raises what else is wrong on this rank, which then all ranks raise.
        """
        channel = self._channel(opt)
        channel.require_not_lost()
        self._agreement.reach(
            channel,
            lambda: self._layout(opt),
            lambda: int(self._mute(opt, channel).size),
            lambda: number_lines(channel, [one.shard for one in self._cut_states(opt)]),
        )

        def begin() -> tuple[ShardedStep[StepReport], Header]:
            require()
            every = [opt._settings(k, group) for k, group in enumerate(opt.param_groups)]
            held = [self._held(opt, every, *each) for each in self._params(opt)]
            number_lines(channel, [one.shard for one in held])  # by groups that are connected
            given = [local_grad(one.param) for one in held]
            model = self._model_of(opt, held)
            grads = [
                array_of(grad.resolve_neg()) if one.shard.is_owner and grad is not None else None
                for one, grad in zip(held, given)
            ]
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
                N_SLOTS,
                0,
                exact=opt.options.sums == "exact",
                params_are_new=self._some_are_written(held, opt._dialect.names),
                bucket_length=channel.bucket_length,
            )
            if self._digest is None or self._digest[0] != settings:
                self._digest = settings, hash_of(settings)
            header = StepHeader(
                model.tensors.t,
                self._digest[1],
                lambda: settings,
                asks_for_step=_asks_for_step(opt),
                found_inf=opt._is_to_be_skipped(),
            )
            return step, header

        try:
            report = take_sharded_step(
                channel,
                begin,
                self._agreement.mute,
                raises_faults=opt.options.nonfinite == "raise",
            )
        except EndedEarly as ended:
            if ended.taken is Taken.state_only:
                together(channel, lambda: self._allocate(opt))
            return ended.taken
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
                self._waiting.pop(one.param, None)  # a state that is cleared begins anew
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
        if not report.flags & SKIPPED:
            self._saw(model.held, names)
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
        """Return each parameter in pieces that is not frozen; those of one group and dtype follow each other."""
        found = [
            each
            for each in self._all_params(opt)
            if each.param.requires_grad or each.param.grad is not None
        ]
        return sorted(found, key=lambda each: (each.place, str(each.param.dtype)))

    def _all_params(self, opt: NativeOptimizer) -> list[GivenParam]:
        every = [
            GivenParam(part.place, part.name_of(k), p)
            for part in all_parts(opt)
            for k, p in enumerate(part.params)
        ]
        in_pieces = [each for each in every if self.cuts.is_cut(each.param)]
        return in_pieces or every

    def _channel(self, opt: NativeOptimizer) -> Channel:
        """Return what connects the ranks of all parameters, frozen ones too."""
        ranks: tuple[int, ...] | None = None
        is_alone = False
        for _, name, param in self._all_params(opt):
            cut = self.cuts.cut_of(name, param)
            if ranks is not None and cut.ranks != ranks:
                raise ValueError(
                    f"params[{name!r}] lies on the ranks {list(cut.ranks)}, and others on {list(ranks)}: all "
                    "parameters of an optimizer must be on the same ranks"
                )
            ranks, is_alone = cut.ranks, cut.is_whole
        if is_alone or ranks is None:
            return self._channels.setdefault((), Channel(OneRank()))
        if ranks not in self._channels:
            group = None
            if len(ranks) != dist.get_world_size():
                group = dist.new_group(list(ranks), use_local_synchronization=True)
            self._channels[ranks] = Channel(TorchEngine(group))
        return self._channels[ranks]

    def _layout(self, opt: NativeOptimizer) -> Layout:
        """Return what the arrays of a step go by, as this rank has it now."""
        params = tuple(
            (
                str(name),
                f"{param.dtype} of shape {cut.shape} in group {place}, {cut.shown}{_of_grad(param)}",
            )
            for place, name, param in self._params(opt)
            for cut in (self.cuts.cut_of(name, param),)
        )
        kept = tuple(opt._settings(k, group).kept for k, group in enumerate(opt.param_groups))
        return Layout(opt.options.sums, params, kept)

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
        others.require_supported([param])
        is_known = is_dtensor(param) or type(param) in PLAIN
        if not is_known or param.device.type != "cpu" or not param.is_floating_point():
            raise TypeError(
                f"{shown} is a {type(param).__name__} of {param.dtype} on {param.device}, must be of "
                "floating point in this machine's memory"
            )
        state = self.cuts.state_of(opt._dialect.names, every[place].kept, name, param)
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

    def _mute(self, opt: NativeOptimizer, channel: Channel) -> npt.NDArray[np.float64]:
        """Return the first array of a rank that has nothing of any parameter: as long as that of others."""
        every = [opt._settings(k, group) for k, group in enumerate(opt.param_groups)]
        muted = [
            (place, param.dtype, str(name), state)
            for (place, name, param), state in zip(self._params(opt), self._cut_states(opt))
        ]
        model = muted_model(muted, opt._dialect.names)
        plan = plan_of(opt, model, every, [(0.0, 0.0)] * len(every))
        return model.tensors.mute_round(
            plan, N_SLOTS, opt.options.sums == "exact", channel.bucket_length
        )

    def _cut_states(self, opt: NativeOptimizer) -> list[CutState]:
        names = opt._dialect.names
        every = [opt._settings(k, group) for k, group in enumerate(opt.param_groups)]
        return [
            self.cuts.state_of(names, every[place].kept, name, param)
            for place, name, param in self._params(opt)
        ]

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
        """Let what lies beside half-precision parameters follow these as they are."""
        names = opt._dialect.names
        every = [opt._settings(k, group) for k, group in enumerate(opt.param_groups)]
        for one in [self._held(opt, every, *each) for each in self._params(opt)]:
            beside = _beside(one, names)
            if beside is None or not opt.state.get(one.param):
                continue
            new = followed(one.local.detach(), beside, every[one.place].is_stochastic)
            if new is not None:
                write(beside, new)
            self._saw([one], names)

    def _some_are_written(self, held: Sequence[Held], names: StateNames) -> bool:
        """Whether somebody has written to a parameter that something lies beside, so that this follows."""
        return any(
            self._seen.get(one.param) != _versions(one)
            for one in held
            if _beside(one, names) is not None
        )

    def _saw(self, held: Sequence[Held], names: StateNames) -> None:
        for one in held:
            if _beside(one, names) is not None:
                self._seen[one.param] = _versions(one)

    def _allocate(self, opt: NativeOptimizer) -> None:
        every = [opt._settings(k, group) for k, group in enumerate(opt.param_groups)]
        made = [self._held(opt, every, *each) for each in self._params(opt)]
        for one in made:
            if one.param.grad is not None:
                opt.state[one.param].update(one.values)
                self._waiting.pop(one.param, None)


def _of_grad(param: torch.Tensor) -> str:
    """Return what a layout says of a gradient that ranks have to cut anew, all of them together."""
    grad = param.grad
    if not is_dtensor(param) or not is_dtensor(grad) or grad.placements == param.placements:
        return ""
    return f", with a gradient of {tuple(grad.placements)}"


def _asks_for_step(opt: NativeOptimizer) -> bool:
    """Whether a step is to do more than make the state, as distributed checkpoints ask it to do."""
    if any(opt.state.values()):
        return True
    for group in opt.param_groups:
        lr = group["lr"]
        if lr is None or is_schedule(lr) or float(lr) != 0:
            return True
    grads = (param.grad for group in opt.param_groups for param in group["params"])
    return any(grad is not None and bool(local_of(grad).any()) for grad in grads)


def _versions(one: Held) -> tuple[int, ...]:
    """Return what changes where torch writes to a parameter, or it gets other memory."""
    return *(
        -1 if x.is_inference() else x._version for x in (one.param, one.local)
    ), one.local.data_ptr()


def _beside(one: Held, names: StateNames) -> torch.Tensor | None:
    """Return this rank's own master or lower halves, if there are."""
    values = one.local_values()
    return values.get(names.master, values.get(names.low))
