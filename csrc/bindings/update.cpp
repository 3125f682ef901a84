#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "bindings/bindings.hpp"
#include "bindings/buffers.hpp"
#include "carried.hpp"
#include "threads.hpp"

namespace adafactor {
namespace {

enum class NonFinite { raise, skip, propagate };

// What all steps of one optimizer have in common: all but param and grad. Never changes.
class Setup {
public:
    Setup(py::object exp_row, py::object exp_col, py::object v, double lr, double beta2, double eps,
          double clip_threshold, bool scale_parameter, NonFinite nonfinite, int num_threads,
          bool carry_param_rms)
        : hyper{lr, beta2, eps, clip_threshold, scale_parameter},
          nonfinite(nonfinite),
          num_threads(num_threads),
          carries(carry_param_rms && scale_parameter),
          exp_row_(std::move(exp_row)),
          exp_col_(std::move(exp_col)),
          v_(std::move(v)) {}

    // One tensor as views, checked against each other.
    Tensor tensor(py::handle param_object, py::handle grad_object) const {
        const Array param = array_of(param_object, "param", Access::write);
        const Array grad = array_of(grad_object, "grad", Access::read);
        require_disjoint(param_object, param, "param", grad_object, grad, "grad");
        const auto add_state = [&](const py::object& object, const char* name, const Array& state) {
            require_disjoint(param_object, param, "param", object, state, name);
            require_disjoint(grad_object, grad, "grad", object, state, name);
            return reinterpret_cast<double*>(state.data);
        };
        Tensor tensor{param, grad, nullptr, nullptr, nullptr, nullptr};
        if (v_.is_none()) {
            const Array row = state_of(exp_row_, "exp_row"), col = state_of(exp_col_, "exp_col");
            const std::ptrdiff_t shape[2] = {row.shape[0], col.shape[0]};
            require_shapes(tensor, 2, shape);
            tensor.exp_row = add_state(exp_row_, "exp_row", row);
            tensor.exp_col = add_state(exp_col_, "exp_col", col);
        } else {
            const Array full = state_of(v_, "v");
            require_shapes(tensor, full.ndim, full.shape);
            tensor.v = add_state(v_, "v", full);
        }
        return tensor;
    }

    const HyperParameters hyper;
    const NonFinite nonfinite;
    const int num_threads;  // 0: as many as set_max_threads allows
    const bool carries;

private:
    static void require_shapes(const Tensor& tensor, int ndim, const std::ptrdiff_t* shape) {
        require_shape(tensor.param, "param", ndim, shape);
        require_shape(tensor.grad, "grad", ndim, shape);
    }

    const py::object exp_row_, exp_col_, v_;  // v is None, or the other two are
};

std::string bad_element(const char* name, py::handle object, const Array& array,
                        std::ptrdiff_t index) {
    if (index < 0)
        return std::string("the squares of ") + name + " add up to more than float64 holds";
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
        std::string(name) + "[" + place + "] is " + py::str(py::float_(value)).cast<std::string>();
    return what + (std::isfinite(value) ? ", whose square overflows float64" : ", must be finite");
}

std::string message_of(const Outcome& outcome, py::handle param, py::handle grad,
                       const Tensor& tensor) {
    std::string message;
    if (outcome.fault == Fault::grad)
        message = bad_element("grad", grad, tensor.grad, outcome.index);
    else if (outcome.fault == Fault::param)
        message = bad_element("param", param, tensor.param, outcome.index);
    else if (tensor.v != nullptr)
        message = "v is not finite, or zero where eps is zero: the update would not be finite";
    else
        message =
            "exp_row and exp_col are not finite, or zero where eps or all are zero: the update "
            "would not be finite";
    return message + "; nothing was changed";
}

// The steps of one optimizer, whether one is under way, and what the last one knows of its param.
struct Progress {
    std::int64_t t = 0;
    std::int64_t skipped = 0;
    std::atomic<bool> busy{false};
    CarriedSquares carried;
    py::weakref carried_param;

    CarriedSquares* carried_for(py::handle param) {
        if (!carried_param || !carried_param().is(param)) {
            carried.forget();
            carried_param = py::weakref(param);
        }
        return &carried;
    }
};

class Turn {
public:
    explicit Turn(Progress& progress) : progress_(progress) {
        if (progress_.busy.exchange(true, std::memory_order_acquire))
            throw std::runtime_error("this optimizer is being updated by another thread");
    }
    ~Turn() { progress_.busy.store(false, std::memory_order_release); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

private:
    Progress& progress_;
};

// Below this a step takes less time than another thread needs to take the GIL and give it back.
constexpr std::size_t kElementsUnderGil = 4096;

Outcome take_step(const Tensor& tensor, const Setup& setup) {
    std::optional<py::gil_scoped_release> no_python_below;
    if (size_of(tensor.param) > kElementsUnderGil) no_python_below.emplace();
    return step(tensor, setup.hyper, setup.nonfinite == NonFinite::propagate,
                setup.num_threads > 0 ? setup.num_threads : max_threads());
}

// A step and its count are one call: no signal, and no other thread, comes between them.
void update(Progress& progress, const Setup& setup, py::handle param, py::handle grad_or_scalar) {
    const Turn turn(progress);
    const py::object grad = array_from(grad_or_scalar);
    Tensor tensor = setup.tensor(param, grad);
    if (setup.carries)
        tensor.carried = progress.carried_for(param);
    else
        progress.carried.forget();
    const Outcome outcome = take_step(tensor, setup);
    if (outcome.fault == Fault::none) {
        ++progress.t;
    } else if (setup.nonfinite == NonFinite::skip) {
        ++progress.skipped;
    } else {
        py::set_error(PyExc_FloatingPointError, message_of(outcome, param, grad, tensor).c_str());
        throw py::error_already_set();
    }
}

}  // namespace

void bind_update(py::module_& m) {
    py::class_<Progress>(m, "Progress", "Counts the steps of one optimizer.")
        .def(py::init([](std::int64_t t, std::int64_t skipped) {
                 auto progress = std::make_unique<Progress>();
                 progress->t = t;
                 progress->skipped = skipped;
                 return progress;
             }),
             py::arg("t") = 0, py::arg("skipped") = 0)
        .def("forget_param",
             [](Progress& progress) {
                 const Turn turn(progress);
                 progress.carried.forget();
             })
        .def_readonly("t", &Progress::t)
        .def_readonly("skipped", &Progress::skipped);

    py::class_<Setup>(
        m, "Setup",
        "What all steps of one optimizer have in common. Either exp_row and exp_col or "
        "v is None; nonfinite is 0 to raise, 1 to skip, 2 to propagate; num_threads 0 "
        "is the limit of set_max_threads.")
        .def(py::init([](py::object exp_row, py::object exp_col, py::object v, double lr,
                         double beta2, double eps, double clip_threshold, bool scale_parameter,
                         int nonfinite, int num_threads, bool carry_param_rms) {
                 return std::make_unique<Setup>(std::move(exp_row), std::move(exp_col),
                                                std::move(v), lr, beta2, eps, clip_threshold,
                                                scale_parameter, NonFinite(nonfinite), num_threads,
                                                carry_param_rms);
             }),
             py::arg("exp_row"), py::arg("exp_col"), py::arg("v"), py::arg("lr"), py::arg("beta2"),
             py::arg("eps"), py::arg("clip_threshold"), py::arg("scale_parameter"),
             py::arg("nonfinite"), py::arg("num_threads"), py::arg("carry_param_rms"));

    m.def("update", &update, "One step of one tensor, in place.", py::arg("progress"),
          py::arg("setup"), py::arg("param"), py::arg("grad"));
}

}  // namespace adafactor
