// The step size of a tensor, or of a matrix: the clip, the scale by RMS(param), decay, momentum.
#pragma once

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

struct StepSize {
    double clip_divisor;
    double step_size;  // of u, before the clip
    Descent descent;
};

// What struct HyperParameters makes of RMS(u)^2, where nan clips nothing, and of RMS(param)^2.
StepSize clip_and_scale(const HyperParameters& hyper, bool has_momentum, double mean_u_sq,
                        double mean_param_sq);

// Notes the largest step size of a tensor's matrices, and its clip; the first counts as the
// largest.
inline void note(const StepSize& size, bool is_first, TensorReport& report) {
    if (!is_first && !(size.step_size > report.step_size)) return;
    report.step_size = size.step_size;
    report.clip_divisor = size.clip_divisor;
}

// Why a step cannot be taken. A gradient that is not finite accounts for all that follows from it,
// and so does a param.
inline Fault fault_of(bool grad_is_finite, bool param_is_finite, bool moment_is_usable) {
    return !grad_is_finite     ? Fault::grad
           : !param_is_finite  ? Fault::param
           : !moment_is_usable ? Fault::second_moment
                               : Fault::none;
}

// Whether it may be none with a gradient that is scaled down.
inline bool depends_on_scale(Fault fault) {
    return fault == Fault::second_moment || fault == Fault::state_format;
}

}  // namespace adafactor
