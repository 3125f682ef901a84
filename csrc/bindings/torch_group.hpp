// What the tensors of a torch.optim param group have in common, and what their state is called.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <limits>
#include <utility>

#include "adafactor.hpp"
#include "rule.hpp"

namespace adafactor {

namespace py = pybind11;

enum class Masters { none, float32, split };

// Which two axes of a tensor are factored; as axes_of in adafactor_native/factoring.py.
struct AxesRule {
    enum class Kind { matrix, last_two, two_largest, none };

    Kind kind;
    std::ptrdiff_t min_dim_size_to_factor;

    // The rows' axis and the columns', or -1 twice.
    std::pair<int, int> of(const Array& array) const {
        const int n = array.ndim;
        if (n < 2 || kind == Kind::none || (kind == Kind::matrix && n > 2)) return {-1, -1};
        int row = n - 2, col = n - 1;
        if (kind == Kind::two_largest) {  // of equal axes the last counts as the larger
            const auto largest_but = [&](int other) {
                int best = -1;
                for (int d = 0; d < n; ++d)
                    if (d != other && (best < 0 || array.shape[d] >= array.shape[best])) best = d;
                return best;
            };
            col = largest_but(-1);
            row = largest_but(col);
        }
        const bool fits = array.shape[row] >= min_dim_size_to_factor &&
                          array.shape[col] >= min_dim_size_to_factor;
        return fits ? std::pair(row, col) : std::pair(-1, -1);
    }
};

struct TorchGroup {
    Rule rule;
    AxesRule axes;
    Masters masters;
    bool has_moment;
    Format state_format;  // of running means

    // An eps of nan is the machine epsilon of the parameter's own dtype, as in torch: of a half
    // 2^-7 or 2^-10; beside masters that of float32, which is what they are.
    Rule rule_of(Format param) const {
        Rule own = rule;
        const double machine_eps = param == Format::float64 ? std::numeric_limits<double>::epsilon()
                                   : param == Format::bfloat16 ? 0x1p-7
                                   : param == Format::float16
                                       ? 0x1p-10
                                       : double(std::numeric_limits<float>::epsilon());
        for (double* eps :
             {&own.eps_squares, &own.eps_means, &own.eps_root, &own.root_floor, &own.mean_floor})
            if (std::isnan(*eps)) *eps = machine_eps;
        return own;
    }
};

// The keys of a tensor's state.
struct TorchNames {
    py::object step, row, col, full, moment, master, low;
    py::object rms_param;      // where RMS(param) is kept for others, or None
    bool keeps_axes;           // the axis that a mean was taken over stays, of length 1
    bool counts_with_tensors;  // step is a tensor of no axes; or an int
};

}  // namespace adafactor
