# mypy: ignore-errors
# numba compiles these loops; to mypy they are calls of unknown decorators.
"""How numba compiles our loops: the same for its optimizer and for the roof."""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# Reordering lets one sum run in many registers, rather than wait for each addition in turn.
FAST = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "nogil": True}
SERIAL_SIZE = 1 << 15  # below this many parameters, waking a second thread costs more than it saves


def serial_and_parallel(step_with):
    """Build a step from its way to compile loops with `prange`: for one thread, and for several.

    A parallel region costs even when it has one thread.
    """
    return {parallel: step_with(njit(parallel=parallel, **FAST)) for parallel in (False, True)}


@njit(**FAST)
def decayed(mean, new_mean_sq, beta2, eps):
    return beta2 * mean + (1 - beta2) * (new_mean_sq + eps)


@intrinsic
def prefetch(typing_context, array, index):
    """Ask for the line of array[index], to be read: LLVM's hint of the same name."""

    def generate(context, builder, signature, arguments):
        values = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, *[number] * 3])
        )
        place = builder.bitcast(builder.gep(values.data, [arguments[1]]), byte)
        builder.call(hint, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate
