// The sum of squares of a gradient in float64: for a norm by which tensors of float64 are scaled.
#include <algorithm>
#include <numeric>

#include "engine/geometry.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {

std::size_t TensorStep::n_tiles() const {
    return (size_of(tensor_.param) + kTaskElements - 1) / kTaskElements;
}

double TensorStep::sum_grad_sq_in_double(const Team& team, double* sums) const {
    const ElementOrder order({&tensor_.param, &tensor_.grad});
    team.for_tasks(n_tiles(), Order::forwards, [&](std::size_t tile, int, char*) {
        const std::size_t end = std::min((tile + 1) * kTaskElements, order.size());
        sums[tile] = 0;
        for (std::size_t k = tile * kTaskElements; k < end; k += kChunk) {
            alignas(64) char copy[kChunk * sizeof(double)];
            const std::size_t n = std::min(kChunk, end - k);
            Block run = order.run(1, k, n, copy);
            if (n == kChunk) {  // four rows are summed faster than one
                run.rows = 4;
                run.cols = kChunk / 4;
                run.stride = std::ptrdiff_t(run.cols * item_size(run.format));
            }
            sums[tile] += kernels_.sum_squares_in_double(run);
        }
    });
    return std::accumulate(sums, sums + n_tiles(), 0.0);
}

}  // namespace adafactor
