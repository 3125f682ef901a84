#include "bindings/take_step.hpp"

#include <cmath>
#include <optional>

#include "bindings/without_gil.hpp"
#include "engine/finite_result.hpp"

namespace adafactor {
namespace {

// Below this a step takes less time than another thread needs to take the GIL and give it back.
constexpr std::size_t kElementsUnderGil = 4096;

// Of a zero in the upper halves whose whole number is no zero, but not finite.
constexpr const char* kForeignHalf =
    ", which somebody wrote beside the lower half of another number, must be said: call "
    "opt.params_changed()";

// An element of an array of this shape by its index in C order.
struct Element {
    std::string place, text;  // text: name[place] is value
    double value;

    Element(const NamedArray& array, int ndim, const std::ptrdiff_t* shape, std::ptrdiff_t index) {
        py::tuple at(ndim);
        for (int d = ndim - 1; d >= 0; --d) {
            const std::ptrdiff_t k = index % shape[d];
            index /= shape[d];
            at[std::size_t(d)] = k;
            place = std::to_string(k) + (place.empty() ? "" : ", ") + place;
        }
        if (place.empty()) place = "()";
        value = array.object[at].cast<double>();
        text = array.name.text() + "[" + place + "] is " + shown();
    }

    // The same of an array of the state: m[place] of 'w' is value.
    std::string of_state(const Name& name) const {
        return std::string(name.word) + "[" + place + "]" + name.of_tensor() + " is " + shown();
    }

private:
    std::string shown() const { return py::str(py::float_(value)).cast<std::string>(); }
};

// `is_state`: the array is one of the state, which messages call otherwise.
std::string bad_element(const NamedArray& named, const Array& array, std::ptrdiff_t index,
                        bool is_state = false) {
    const Name& name = named.name;
    if (index < 0)
        return "the squares of " + (is_state ? name.word + name.of_tensor() : name.text()) +
               " add up to more than float64 holds";
    const Element element(named, array.ndim, array.shape, index);
    if (array.format == Format::split && element.value == 0) return element.text + kForeignHalf;
    return (is_state ? element.of_state(name) : element.text) +
           (std::isfinite(element.value) ? ", whose square overflows float64" : ", must be finite");
}

std::string infinite_result(const NamedArray& param, const Array& array, std::ptrdiff_t index) {
    const Element element(param, array.ndim, array.shape, index);
    if (!std::isfinite(element.value)) return element.text + ", must be finite";
    if (array.format == Format::split && element.value == 0) return element.text + kForeignHalf;
    return element.text +
           ", and this step would make it, its copy or its first moment infinite: it must be "
           "smaller, the step too, or the dtype wider";
}

// What is wrong with a running mean, or nothing if all are what gradients can have made them.
std::string bad_second_moment(const Tensor& tensor, const HeldTensor& held) {
    const double limit = largest_second_moment(tensor.grad.format);
    const auto bad_of = [&](const char* word, const HeldArray& array, const void* means) {
        const std::size_t n = array.exists() ? size_of(array.now(held.name_of(word))) : 0;
        for (std::size_t k = 0; k < n; ++k) {
            const double mean = tensor.state_format == Format::float64
                                    ? static_cast<const double*>(means)[k]
                                    : static_cast<const float*>(means)[k];
            if (mean >= 0 && mean <= limit) continue;
            const Array shape = array.now(held.name_of(word));
            const Name name = held.name_of(word);
            return Element({array.object(), name}, shape.ndim, shape.shape, std::ptrdiff_t(k))
                       .of_state(name) +
                   ", must be finite, at least 0 and not larger than squares of gradients";
        }
        return std::string();
    };
    std::string bad = bad_of("v", held.v, tensor.v);
    if (bad.empty()) bad = bad_of("exp_row", held.exp_row, tensor.exp_row);
    return bad.empty() ? bad_of("exp_col", held.exp_col, tensor.exp_col) : bad;
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

std::string useless_second_moment(bool is_v, const std::string& of_tensor) {
    if (is_v)
        return "v" + of_tensor +
               " is not finite, or holds a zero while eps is zero: the update would not be finite";
    return "exp_row and exp_col" + of_tensor +
           " are not finite, or hold a zero while eps is zero, or are all zero: the update "
           "would not be finite";
}

std::string fault_text(const Outcome& outcome, const Tensor& tensor, const NamedArray& param,
                       const NamedArray& grad, const NamedArray& m, const HeldTensor* held) {
    if (outcome.fault == Fault::grad) return bad_element(grad, tensor.grad, outcome.index);
    if (outcome.fault == Fault::param) return bad_element(param, tensor.param, outcome.index);
    if (outcome.fault == Fault::first_moment) return bad_element(m, tensor.m, outcome.index, true);
    if (outcome.fault == Fault::result) return infinite_result(param, tensor.param, outcome.index);
    if (outcome.fault == Fault::state_format)
        return (tensor.v != nullptr ? "v" : "exp_row or exp_col") + param.name.of_tensor() +
               " would have a mean of squares above 3.4e38, must be at most that in float32: "
               "state_dtype='float64' holds it";
    const std::string bad = held != nullptr ? bad_second_moment(tensor, *held) : "";
    if (!bad.empty()) return bad;
    return useless_second_moment(tensor.v != nullptr, param.name.of_tensor());
}

void throw_floating_point_error(const std::string& message) {
    py::set_error(PyExc_FloatingPointError, message.c_str());
    throw py::error_already_set();
}

}  // namespace adafactor
