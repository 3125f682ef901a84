"""Pickles that are torn or changed raise an error or give an optimizer that works: none ends a process.

A pickle can call what it likes, so that one from an enemy must not be read at all: what is looked at
here is a file that was cut or overwritten. The arrays in it are kept out of the bytes that are changed,
for reading those is NumPy's, and only what belongs to this package and to Python itself is called.
"""

import dataclasses
import io
import pickle
import pickletools
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer, schedules
from test_hostile_states import KINDS, model

PARTS = """
import faulthandler, resource, sys
faulthandler.enable()
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # a torn pickle may ask for any memory
import test_hostile_pickles
print(test_hostile_pickles.fuzz(int(sys.argv[1]), int(sys.argv[2])))
"""


class Writer(pickle.Pickler):
    """A pickler that leaves arrays and dtypes out, in `kept`."""

    def __init__(self, file, kept, protocol):
        super().__init__(file, protocol)
        self.kept = kept

    def persistent_id(self, found):
        if isinstance(found, (np.ndarray, np.dtype)):
            self.kept.append(found)
            return len(self.kept) - 1
        return None


class OfOurs:
    """What an unpickler finds: kept arrays, other ones where their numbers were changed; our names."""

    def __init__(self, file, kept):
        super().__init__(file)
        self.kept = kept

    def persistent_load(self, number):
        if not isinstance(number, int):
            raise pickle.UnpicklingError("not one of ours")
        kept = self.kept[number % len(self.kept)]
        return kept.copy() if isinstance(kept, np.ndarray) else kept

    def find_class(self, module, name):
        if not module.startswith("adafactor_native.") and (module, name) not in (
            ("builtins", "set"),
            ("builtins", "frozenset"),
            ("numpy", "dtype"),
        ):
            raise pickle.UnpicklingError(f"{module}.{name} is not needed")
        return super().find_class(module, name)


class Reader(OfOurs, pickle.Unpickler):
    """Python's unpickler, which allocates for a number in the bytes what it says: 3 GB for some."""


class FrugalReader(OfOurs, pickle._Unpickler):
    """The one written in Python, that allocates nothing for them: what memory it takes, objects ask for."""

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]]
    }


def subjects():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        opt = model(kind)
        if kind == "plain":
            opt.skip_above = 3.0
            opt.accumulate({name: rng.standard_normal(x.shape) for name, x in opt.params.items()})
        yield opt
    groups = [
        {"params": {"w": np.ones((4, 3), np.float32)}, "lr": schedules.Cosine(0.1, steps=10)},
        {"params": [np.ones(3, ml_dtypes.bfloat16)], "masters": "float32", "beta1": 0.9},
    ]
    yield Optimizer(groups, nonfinite="skip", max_skipped=5, weight_decay=0.1)
    yield AdaFactor((4, 3))
    yield AdaFactor((5,), nonfinite="skip")


def dumped(subject, protocol):
    file, kept = io.BytesIO(), []
    Writer(file, kept, protocol).dump(subject)
    return file.getvalue(), kept


def changed(data, rng):
    """Return a pickle that was cut, or has bytes overwritten, left out, doubled or moved."""
    data = bytearray(data)
    way, at = rng.integers(6), int(rng.integers(len(data)))
    length = int(rng.integers(1, 12))
    if way == 0:
        return bytes(data[:at])
    if way == 1:
        del data[at : at + length]
    elif way == 2:
        data[at:at] = data[at : at + length]
    elif way == 3:
        to = int(rng.integers(len(data)))
        data[to : to + length] = data[at : at + length]
    else:
        for _ in range(way - 3):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)


def use(subject):
    """Step what a pickle gave, by all that it says of itself, and save it."""
    if isinstance(subject, AdaFactor):
        param = np.ones(subject.shape)
        subject.update(param, np.full(subject.shape, 0.5))
        subject.load_state_dict(subject.state_dict())
    elif isinstance(subject, Optimizer):
        if subject.nonfinite != "propagate":
            held = [
                *subject.params.values(),
                *(x for s in subject.state.values() for x in s.values()),
            ]
            if not all(np.isfinite(np.asarray(x, np.float64)).all() for x in held):
                print("a number that is not finite, without a word")
                raise SystemExit(1)
        if subject.memory.by_kind.get("sum"):
            subject.step()
        subject.accumulate(None)
        subject.step({name: np.full(x.shape, 0.5) for name, x in subject.params.items()})
        subject.load_state_dict(subject.state_dict(params=True))
        pickle.dumps(subject)
        repr(subject), subject.memory


def outcome(data, kept, reader=Reader):
    """Return whether a pickle was refused, read, or gave what works; any error says so."""
    result = "refused"
    with suppress(Exception):
        try:
            read = reader(io.BytesIO(data), kept).load()
            result = "read"
            use(read)
            result = "worked"
        except MemoryError:
            result = "no memory"
    return result


def fuzz(cases, seed):
    """Return how many changed pickles were refused, and how many gave what works or says why not."""
    rng = np.random.default_rng(seed)
    outcomes = dict.fromkeys(("refused", "no memory", "read", "worked"), 0)
    all_subjects = list(subjects())
    for subject in all_subjects:
        for protocol in (3, 4):
            data, kept = dumped(subject, protocol)
            use(Reader(io.BytesIO(data), kept).load())
            for _ in range(cases // (2 * len(all_subjects))):
                outcomes[outcome(changed(data, rng), kept)] += 1
    return outcomes


def counts(text):
    return dict(eval(text))


def test_changed_pickles_end_no_process(python):
    outcomes = counts(python(PARTS.replace("int(sys.argv[1]), int(sys.argv[2])", "3000, 0")))
    assert outcomes["refused"] > 1000 and outcomes["worked"] > 100


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_hundred_thousand_changed_pickles(python, seed):
    outcomes = counts(python(PARTS.replace("int(sys.argv[1]), int(sys.argv[2])", f"20000, {seed}")))
    assert sum(outcomes.values()) >= 19000


@pytest.mark.parametrize("make", [lambda: model("masters"), lambda: AdaFactor((4, 3))])
def test_a_torn_pickle_raises_at_every_length(make):
    data = pickle.dumps(make())
    for end in range(0, len(data), max(1, len(data) // 200)):
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, IndexError)):
            pickle.loads(data[:end])


def contents(opt):
    return opt.__reduce_ex__(4)[2]


def rebuilt(kind, change):
    """Return an optimizer as its pickle makes it, of contents that were changed."""
    state = contents(model(kind))
    state["groups"] = [[list(tensors), dict(switches)] for tensors, switches in state["groups"]]
    change(state)
    opt = object.__new__(Optimizer)
    opt.__setstate__(state)
    return opt


def tensors_with(state, **fields):
    tensors = state["groups"][0][0]
    tensors[0] = dataclasses.replace(tensors[0], **fields)


WRONG = [
    (lambda s: s.update(counts=(2**60, 0, [0] * 4)), "state"),
    (lambda s: s.update(counts=(2, 0, [3] * 4)), "the count of a tensor's steps is 3"),
    (lambda s: s.update(counts=(2, 0, [2])), "as many counts as tensors"),
    (lambda s: s.update(nonfinite="never"), "nonfinite is 'never', must be"),
    (lambda s: s.update(seed=-1), "seed is -1, must be"),
    (lambda s: s.update(max_grad_norm=float("nan")), "max_grad_norm is nan, must be"),
    (lambda s: s.update(skip_above=0.5), "skip_above is 0.5, must be"),
    (lambda s: s["groups"][0][1].update(lr=float("nan")), "lr is nan, must be"),
    (lambda s: s["groups"][0][1].update(beta1=2.0), "beta1 is 2.0, must be"),
    (lambda s: s["groups"][0][0].append(s["groups"][0][0][0]), "params['w'] is there twice"),
    (lambda s: tensors_with(s, axes=(0, 0)), "the factored axes of params['w'] must be two"),
    (lambda s: tensors_with(s, axes=(0, 2)), "the factored axes of params['w'] must be two"),
    (lambda s: tensors_with(s, axes=(-1, 0)), "the factored axes of params['w'] must be two"),
    (lambda s: tensors_with(s, axes=(1, 0)), "exp_rows['w'] has shape (4,), must be (3,)"),
    (lambda s: tensors_with(s, exp_row=np.ones(3)), "exp_rows['w'] has shape (3,), must be (4,)"),
    (lambda s: tensors_with(s, exp_row=np.full(4, -1.0)), "exp_row of params['w'][0] is -1.0"),
    (lambda s: tensors_with(s, m=np.full((4, 3), np.nan)), "m of params['w'][0][0] is nan"),
    (lambda s: tensors_with(s, m=np.ones((3, 4))), "ms['w'] has shape (3, 4), must be (4, 3)"),
    (lambda s: tensors_with(s, name=3), "params has the name 3, must be a str"),
]


@pytest.mark.parametrize("change, text", WRONG)
def test_contents_that_no_pickle_of_ours_has_are_refused(change, text):
    if text == "state":
        opt = rebuilt("double", change)
        with pytest.raises(ValueError, match="the count of steps is 2"):
            opt.step({name: np.ones(x.shape) for name, x in opt.params.items()})
        return
    with pytest.raises((TypeError, ValueError)) as raised:
        rebuilt("double", change)
    assert str(raised.value).startswith(text)


def test_an_array_of_one_is_checked_too():
    opt = AdaFactor((4, 3))
    for change, text in [
        ({"_exp_row": np.ones(3)}, "exp_row has shape (3,), must be (4,)"),
        ({"_exp_row": np.full(4, np.nan)}, "exp_row[0] is nan, must be finite and >= 0"),
        ({"_exp_row": None}, "an array of two axes must have exp_row and exp_col"),
        ({"_shape": (3, 4)}, "exp_row has shape (4,), must be (3,)"),
        ({"_shape": (4, -3)}, "shape is (4, -3), must be a sequence of ints >= 0"),
        ({"lr": -1.0}, "lr is -1.0, must be"),
        ({"nonfinite": "never"}, "nonfinite is 'never', must be"),
        ({"t": -1}, "t is -1 and skipped 0, must be at least 0"),
    ]:
        with pytest.raises((TypeError, ValueError)) as raised:
            object.__new__(AdaFactor).__setstate__({**contents(opt), **change})
        assert str(raised.value).startswith(text)


def test_what_the_bytes_of_a_pickle_refer_to_is_ours_only():
    """No class of the extension is in one, whose fields nothing would check."""
    for subject in subjects():
        names = [
            argument
            for opcode, argument, _ in pickletools.genops(pickle.dumps(subject, 3))
            if opcode.name == "GLOBAL"
        ]
        assert names and not any("adafactor_native._core" in name for name in names)


@pytest.mark.parametrize(
    "other",
    [
        lambda low: low.view(np.float16),
        lambda low: low.view(np.int16),
        lambda low: low[:, :2],
        lambda low: low[0],
    ],
    ids=["float16", "int16", "another shape", "another number of axes"],
)
def test_lower_halves_that_fit_no_param_are_refused_by_a_sentence(other):
    opt = Optimizer({"w": np.ones((4, 3), ml_dtypes.bfloat16)}, masters="split")
    data, kept = dumped(opt, pickle.HIGHEST_PROTOCOL)
    (at,) = (k for k, x in enumerate(kept) if isinstance(x, np.ndarray) and x.dtype == np.uint16)
    kept[at] = other(kept[at])
    with pytest.raises(TypeError, match=r"^lows\['w'\] must be an array of uint16 with the shape"):
        Reader(io.BytesIO(data), kept).load()
