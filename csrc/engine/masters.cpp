// Whether the halves of a tensor are still those that its master was rounded to: a sixteenth of
// them at each step, in rotation, and some of them always. An array that is overwritten as a whole,
// by other weights, is noticed before the step would revert it.
#include <algorithm>
#include <atomic>

#include "adafactor.hpp"
#include "dispatch/isa.hpp"
#include "engine/finite_result.hpp"
#include "engine/strided.hpp"
#include "engine/threads.hpp"

namespace adafactor {

bool is_still_rounded(const Tensor& tensor, int threads) {
    const DefaultFloatEnvironment while_this_works;
    constexpr std::size_t unit = 64, run = kChunk, runs_per_task = 16;
    const std::size_t size = size_of(tensor.param), n_units = (size + unit - 1) / unit;
    if (size == 0) return true;
    const std::size_t turn = tensor.known->turn;
    TurnOf due(n_units, turn);
    if (due.is_empty()) due.begin = turn % n_units, due.end = due.begin + 1;
    const std::size_t begin = due.begin * unit, end = std::min(due.end * unit, size);
    const std::size_t n_runs = (end - begin + run - 1) / run;
    const ElementOrder order({&tensor.param, &tensor.copy});
    const KernelTable& kernels = running_kernels();
    std::atomic<bool> is_rounded{true};
    parallel_for((n_runs + runs_per_task - 1) / runs_per_task, team_size(end - begin, threads),
                 [&](std::size_t task, int) {
                     const std::size_t first = begin + task * runs_per_task * run;
                     const std::size_t last = std::min(first + runs_per_task * run, end);
                     for (std::size_t k = first; k < last && is_rounded; k += run) {
                         alignas(64) char floats[run * sizeof(float)], halves[run * 2];
                         const std::size_t n = std::min(run, last - k);
                         if (!kernels.are_rounded(order.run(0, k, n, floats),
                                                  order.run(1, k, n, halves), tensor.stochastic))
                             is_rounded = false;
                     }
                 });
    return is_rounded;
}

}  // namespace adafactor
