#include <atomic>
#include <cmath>
#include <memory>
#include <stdexcept>

#include "bindings/bindings.hpp"
#include "bindings/buffers.hpp"
#include "carried.hpp"
#include "threads.hpp"

namespace adafactor {
namespace {

// One tensor's arguments as views, checked against each other.
struct Checked {
    Tensor tensor;

    Checked(py::handle param, py::handle grad, py::handle exp_row, py::handle exp_col, py::handle v)
        : tensor{array_of(param, "param", Access::write),
                 array_of(grad, "grad", Access::read),
                 nullptr,
                 nullptr,
                 nullptr,
                 nullptr} {
        const bool factored = v.is_none();
        if (factored) {
            const Array row = state_of(exp_row, "exp_row"), col = state_of(exp_col, "exp_col");
            tensor.exp_row = reinterpret_cast<double*>(row.data);
            tensor.exp_col = reinterpret_cast<double*>(col.data);
            const std::ptrdiff_t shape[2] = {row.shape[0], col.shape[0]};
            require_shapes(2, shape);
            require_disjoint_from(param, grad, exp_row, row, "exp_row");
            require_disjoint_from(param, grad, exp_col, col, "exp_col");
        } else {
            const Array full = state_of(v, "v");
            tensor.v = reinterpret_cast<double*>(full.data);
            require_shapes(full.ndim, full.shape);
            require_disjoint_from(param, grad, v, full, "v");
        }
        require_disjoint(param, tensor.param, "param", grad, tensor.grad, "grad");
    }

private:
    void require_shapes(int ndim, const std::ptrdiff_t* shape) const {
        require_shape(tensor.param, "param", ndim, shape);
        require_shape(tensor.grad, "grad", ndim, shape);
    }

    void require_disjoint_from(py::handle param, py::handle grad, py::handle state,
                               const Array& array, const char* name) const {
        require_disjoint(param, tensor.param, "param", state, array, name);
        require_disjoint(grad, tensor.grad, "grad", state, array, name);
    }
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

    CarriedSquares* not_carried() {
        carried.forget();
        return nullptr;
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

enum class NonFinite { raise, skip, propagate };

// A step and its count are one call: no signal, and no other thread, comes between them.
void update(Progress& progress, py::handle param, py::handle grad_or_scalar, py::handle exp_row,
            py::handle exp_col, py::handle v, double lr, double beta2, double eps,
            double clip_threshold, bool scale_parameter, int nonfinite, int num_threads,
            bool carry_param_rms) {
    const Turn turn(progress);
    const py::object grad = array_from(grad_or_scalar);
    Checked checked(param, grad, exp_row, exp_col, v);
    checked.tensor.carried =
        carry_param_rms && scale_parameter ? progress.carried_for(param) : progress.not_carried();
    const HyperParameters hyper{lr, beta2, eps, clip_threshold, scale_parameter};
    const auto policy = NonFinite(nonfinite);
    Outcome outcome;
    {
        const py::gil_scoped_release no_python_below;
        outcome = step(checked.tensor, hyper, policy == NonFinite::propagate,
                       num_threads > 0 ? num_threads : max_threads());
    }
    if (outcome.fault == Fault::none) {
        ++progress.t;
    } else if (policy == NonFinite::skip) {
        ++progress.skipped;
    } else {
        py::set_error(PyExc_FloatingPointError,
                      message_of(outcome, param, grad, checked.tensor).c_str());
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

    m.def("update", &update,
          "One step of one tensor, in place. Either exp_row and exp_col or v is None; nonfinite is "
          "0 to raise, 1 to skip, 2 to propagate; num_threads 0 is the limit of set_max_threads.",
          py::arg("progress"), py::arg("param"), py::arg("grad"), py::arg("exp_row"),
          py::arg("exp_col"), py::arg("v"), py::arg("lr"), py::arg("beta2"), py::arg("eps"),
          py::arg("clip_threshold"), py::arg("scale_parameter"), py::arg("nonfinite"),
          py::arg("num_threads"), py::arg("carry_param_rms"));
}

}  // namespace adafactor
