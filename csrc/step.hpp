// The two kinds of step, for each pair of element types.
#pragma once

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

template <class P, class G>
Outcome step_factored(const Tensor& tensor, const HyperParameters& hyper, bool propagate,
                      int threads, const KernelTable& table, const Kernels<P, G>& kernels);

template <class P, class G>
Outcome step_unfactored(const Tensor& tensor, const HyperParameters& hyper, bool propagate,
                        int threads, const KernelTable& table, const Kernels<P, G>& kernels);

// Calls define(P, G) for each pair of element types.
#define ADAFACTOR_FOR_EACH_PAIR(define) \
    define(float, float) define(float, double) define(double, float) define(double, double)

}  // namespace adafactor
