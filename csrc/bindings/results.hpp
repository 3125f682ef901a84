// What a step of a model reports: arrays that exist before it, for nothing may fail after it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "bindings/without_gil.hpp"

namespace adafactor {

namespace py = pybind11;

constexpr py::ssize_t kNumbers = 5;

// What a step did that not every step does. adafactor_native/report.py has the same numbers.
enum Flag : std::uint8_t { kSkipped = 1, kSpike = 2, kNewlyStuck = 4 };

// Of n tensors.
struct Results {
    explicit Results(std::size_t n) : Results(py::ssize_t(n)) {}

    py::array_t<double> numbers;  // (n, 5)
    py::array_t<double> norms;    // (2,): that of all gradients, and that above which it is a spike
    py::array_t<bool> stepped, stuck;
    py::array_t<std::int64_t> t;      // ()
    py::array_t<std::uint8_t> flags;  // (), of Flag

    // `limit`: the norm above which the step is left out; the largest double if none is.
    void finish(double grad_norm, double limit, std::int64_t count) {
        constexpr double most = std::numeric_limits<double>::max();
        norms.mutable_data()[0] = grad_norm;
        norms.mutable_data()[1] = limit == most ? std::numeric_limits<double>::infinity() : limit;
        *t.mutable_data() = count;
    }

private:
    explicit Results(py::ssize_t n)
        : numbers({n, kNumbers}),
          norms(2),
          stepped(n),
          stuck(n),
          t(std::vector<py::ssize_t>{}),
          flags(std::vector<py::ssize_t>{}) {
        constexpr double nan = std::numeric_limits<double>::quiet_NaN();
        std::fill_n(numbers.mutable_data(), n * kNumbers, nan);
        std::fill_n(stepped.mutable_data(), n, false);
        std::fill_n(stuck.mutable_data(), n, false);
        finish(nan, std::numeric_limits<double>::max(), 0);
        *flags.mutable_data() = 0;
    }
};

// A step of a model on its way: at once, or begun by step_tensor until step ends it.
struct ModelStep {
    // Returns make_report(the arrays) in the end.
    ModelStep(std::size_t n, const py::function& make_report)
        : results(n), report(stops_where_unwound([&] {
              return make_report(results.numbers, results.norms, results.stepped, results.stuck,
                                 results.t, results.flags);
          })) {}

    Results results;
    py::object report;
};

}  // namespace adafactor
