// How many small matrices are taken at a time, and how their elements are numbered for random bits:
// by the whole tensor's shape alone, whatever part of it is at hand.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/strided.hpp"
#include "engine/threads.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

struct SmallCalls {
    std::size_t of_matrix;           // elements
    std::size_t per_call, per_task;  // matrices

    explicit SmallCalls(std::size_t elements)
        : of_matrix(elements),
          per_call(std::max(kChunk / elements / kLanesOfSmall, std::size_t(1)) * kLanesOfSmall),
          per_task(kTaskElements / elements / kLanesOfSmall * kLanesOfSmall) {}

    // Whether a tensor of so many matrices is taken in calls.
    static bool take(std::size_t elements, std::size_t n_matrices) {
        return elements <= kSmallElements && n_matrices >= kLanesOfSmall;
    }

    // The number, as in Rounding, of a matrix's first element; the others follow in C order.
    std::uint64_t number_of(std::size_t matrix) const {
        const std::size_t calls = (per_task + per_call - 1) / per_call;
        const std::size_t in_task = matrix % per_task;
        const std::size_t call = matrix / per_task * calls + in_task / per_call;
        return call * numbered(per_call * of_matrix) + in_task % per_call * of_matrix;
    }
};

}  // namespace adafactor
