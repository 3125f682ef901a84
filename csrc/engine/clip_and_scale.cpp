#include "engine/clip_and_scale.hpp"

#include <cmath>

namespace adafactor {

StepSize clip_and_scale(const HyperParameters& hyper, bool has_momentum, double mean_u_sq,
                        double mean_param_sq) {
    const double ratio = std::sqrt(mean_u_sq) / hyper.clip_threshold;
    const double divisor = ratio > 1 ? ratio : 1;  // 1 for nan, as Python's max(1.0, nan)
    double size = hyper.lr;
    if (hyper.scale_parameter) {
        double rms = std::sqrt(mean_param_sq);
        if (hyper.scale_after_decay) rms *= std::abs(1 - hyper.decay);
        size *= rms < hyper.eps_scale ? hyper.eps_scale : rms;
    }
    Descent descent{};
    descent.decay = hyper.decay;
    if (hyper.decay_by_step != 0) descent.decay += hyper.decay_by_step * size;
    descent.weight = size / divisor;
    if (has_momentum) {
        descent.beta1 = hyper.beta1;
        descent.rate = hyper.momentum_of_u ? size : 1;
        descent.weight = (1 - hyper.beta1) * (hyper.momentum_of_u ? 1 / divisor : descent.weight);
    }
    descent.weight *= hyper.grad_scale;
    return {divisor, size, descent};
}

}  // namespace adafactor
