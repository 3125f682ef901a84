// What the tensors of a group have in common, and what it makes of a step's t.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "adafactor.hpp"

namespace adafactor {

// Epsilons that are nan stand for the machine epsilon that param is computed with.
struct Rule {
    double beta2;       // the largest beta2 of any step, if there is a decay_rate
    double decay_rate;  // nan: beta2 is constant; else 1 - (t - decay_offset)^decay_rate
    std::int64_t decay_offset;
    bool bias_correction;
    double eps_squares, eps_means, eps_root, root_floor, mean_floor;
    double clip_threshold;
    bool per_matrix;
    bool scale_parameter;
    double eps_scale;
    bool scale_after_decay;
    bool relative_step;
    double warmup;  // lr for each step so far, instead of lr; 0: none
    double beta1;
    bool momentum_of_u;
    double decay_by_step;
    bool maximize;
    bool stochastic;  // how halves are rounded
    bool shared_t;    // t counts the steps of the model, not those of the tensor

    // `decay`: 1 - the factor of param that does not depend on the step size.
    HyperParameters at(std::int64_t t, double lr, double decay, bool decays, double grad_scale,
                       Format format) const {
        const double machine_eps = format == Format::float64
                                       ? std::numeric_limits<double>::epsilon()
                                       : double(std::numeric_limits<float>::epsilon());
        const auto resolved = [=](double eps) { return std::isnan(eps) ? machine_eps : eps; };
        HyperParameters hyper{};
        hyper.lr = lr_at(t, lr);
        hyper.beta2 = beta2_at(t);
        hyper.eps_squares = resolved(eps_squares);
        hyper.eps_means = resolved(eps_means);
        hyper.eps_root = resolved(eps_root);
        hyper.root_floor = resolved(root_floor);
        hyper.mean_floor = resolved(mean_floor);
        hyper.clip_threshold = clip_threshold;
        hyper.per_matrix = per_matrix;
        hyper.scale_parameter = scale_parameter;
        hyper.eps_scale = eps_scale;
        hyper.scale_after_decay = scale_after_decay;
        hyper.beta1 = beta1;
        hyper.momentum_of_u = momentum_of_u;
        hyper.decay = decays ? decay : 0;
        hyper.decay_by_step = decays ? decay_by_step : 0;
        hyper.grad_scale = maximize ? -grad_scale : grad_scale;
        return hyper;
    }

private:
    double beta2_at(std::int64_t t) const {
        if (std::isnan(decay_rate)) return beta2;
        const auto steps = double(std::max<std::int64_t>(t - decay_offset, 1));
        return std::min(beta2, 1 - std::pow(steps, decay_rate));
    }

    double lr_at(std::int64_t t, double lr) const {
        if (relative_step)
            lr = std::min(warmup > 0 ? warmup * double(t) : lr, 1 / std::sqrt(double(t)));
        if (!bias_correction) return lr;
        const double corrected = 1 - std::pow(beta2, double(t));
        return lr * std::sqrt(corrected) / corrected;
    }
};

}  // namespace adafactor
