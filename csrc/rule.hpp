// What the tensors of a group have in common, and what it makes of a step's t.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "adafactor.hpp"

namespace adafactor {

// Every field of Rule once: its type, its name, and what it means. The struct and its Python class
// are made of this list.
// clang-format off: one line for each
#define ADAFACTOR_RULE_FIELDS(field) \
    field(double, beta2, "the largest beta2 of any step, if there is a decay_rate") \
    field(double, decay_rate, "nan: beta2 is constant; else 1 - (t - decay_offset)^decay_rate") \
    field(std::int64_t, decay_offset, "as in decay_rate") \
    field(bool, bias_correction, "lr times sqrt(1 - beta2^t) / (1 - beta2^t)") \
    field(bool, debiased_beta2, "beta2_t = beta2 (1 - beta2^(t-1)) / (1 - beta2^t)") \
    field(double, eps_squares, "as in HyperParameters; nan: the machine epsilon of param's dtype") \
    field(double, eps_means, "likewise") \
    field(double, eps_root, "likewise") \
    field(double, root_floor, "likewise") \
    field(double, mean_floor, "likewise") \
    field(double, clip_threshold, "infinity turns clipping off") \
    field(bool, per_matrix, "RMS(u) and RMS(param) are each matrix's own") \
    field(bool, scale_parameter, "the step size is proportional to RMS(param)") \
    field(double, eps_scale, "the least that RMS(param) counts as") \
    field(bool, scale_after_decay, "RMS(param) is that of (1 - decay) param") \
    field(bool, relative_step, "lr is at most 1 / sqrt(t)") \
    field(double, warmup, "lr for each step so far, with relative_step; 0: lr itself") \
    field(double, beta1, "matters to a tensor with m") \
    field(bool, momentum_of_u, "m is a mean of u, not of the step") \
    field(double, decay_by_step, "what is taken from 1 for each unit of step size") \
    field(bool, maximize, "the gradient counts negated") \
    field(bool, stochastic, "how halves are rounded: or to nearest") \
    field(bool, shared_t, "t counts the steps of the model, not those of the tensor")
// clang-format on

struct Rule {
#define ADAFACTOR_RULE_FIELD(type, name, meaning) type name;
    ADAFACTOR_RULE_FIELDS(ADAFACTOR_RULE_FIELD)
#undef ADAFACTOR_RULE_FIELD

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
        if (debiased_beta2)
            return beta2 * (1 - std::pow(beta2, double(t - 1))) / (1 - std::pow(beta2, double(t)));
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
