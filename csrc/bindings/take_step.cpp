#include "bindings/take_step.hpp"

#include <cmath>
#include <optional>

#include "bindings/without_gil.hpp"

namespace adafactor {
namespace {

// Below this a step takes less time than another thread needs to take the GIL and give it back.
constexpr std::size_t kElementsUnderGil = 4096;

std::string bad_element(const Name& name, py::handle object, const Array& array,
                        std::ptrdiff_t index) {
    if (index < 0) return "the squares of " + name.text() + " add up to more than float64 holds";
    py::tuple at(array.ndim);
    std::string place;
    for (int d = array.ndim - 1; d >= 0; --d) {
        const std::ptrdiff_t k = index % array.shape[d];
        index /= array.shape[d];
        at[std::size_t(d)] = k;
        place = std::to_string(k) + (place.empty() ? "" : ", ") + place;
    }
    if (place.empty()) place = "()";
    const auto value = object[at].cast<double>();
    const std::string what =
        name.text() + "[" + place + "] is " + py::str(py::float_(value)).cast<std::string>();
    return what + (std::isfinite(value) ? ", whose square overflows float64" : ", must be finite");
}

}  // namespace

Outcome take_step(const Tensor* tensors, std::size_t n_tensors, const Options& options,
                  TensorReport* reports) {
    std::size_t elements = 0;
    for (std::size_t k = 0; k < n_tensors; ++k) elements += size_of(tensors[k].param);
    std::optional<WithoutGil> no_python_below;
    if (elements > kElementsUnderGil) no_python_below.emplace();
    return step(tensors, n_tensors, options, reports);
}

std::string fault_text(const Outcome& outcome, const Tensor& tensor, py::handle param,
                       const Name& param_name, py::handle grad, const Name& grad_name) {
    if (outcome.fault == Fault::grad)
        return bad_element(grad_name, grad, tensor.grad, outcome.index);
    if (outcome.fault == Fault::param)
        return bad_element(param_name, param, tensor.param, outcome.index);
    const std::string of = param_name.of_tensor();
    if (outcome.fault == Fault::state_format)
        return (tensor.v != nullptr ? "v" : "exp_row or exp_col") + of +
               " would have a mean of squares above 3.4e38, must be at most that in float32: "
               "state_dtype='float64' holds it";
    if (tensor.v != nullptr)
        return "v" + of +
               " is not finite, or holds a zero while eps is zero: the update would not be finite";
    return "exp_row and exp_col" + of +
           " are not finite, or hold a zero while eps is zero, or are all zero: the update "
           "would not be finite";
}

void throw_floating_point_error(const std::string& message) {
    py::set_error(PyExc_FloatingPointError, message.c_str());
    throw py::error_already_set();
}

}  // namespace adafactor
