// All that a step takes but parameters and gradients, as Python puts it together.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "adafactor.hpp"
#include "engine/threads.hpp"
#include "rule.hpp"

namespace adafactor {

// What becomes of a step that would not be finite.
enum class NonFinite { raise, skip, propagate };

// Holds for every step until a hyper-parameter is set. Never changes.
struct Plan {
    std::vector<Rule> rules;  // one for each group
    std::vector<double> lr;   // likewise
    std::vector<double> decay;
    NonFinite nonfinite;
    bool all_or_none;
    double max_grad_norm;  // infinity: none
    double skip_above;     // of the usual norm; infinity: none
    int num_threads;       // 0: as many as set_max_threads allows
    bool carry_param_rms;
    std::uint64_t seed;

    bool leaves_out_spikes() const { return std::isfinite(skip_above); }

    Options options() const {
        return {nonfinite == NonFinite::propagate, all_or_none, nonfinite == NonFinite::skip,
                num_threads > 0 ? num_threads : max_threads(), max_grad_norm};
    }
};

}  // namespace adafactor
