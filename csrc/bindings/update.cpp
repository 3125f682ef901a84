#include <atomic>
#include <memory>
#include <utility>

#include "bindings/bindings.hpp"
#include "bindings/buffers.hpp"
#include "bindings/take_step.hpp"
#include "bindings/turn.hpp"
#include "engine/carried.hpp"
#include "engine/threads.hpp"

namespace adafactor {
namespace {

// What all steps of one optimizer have in common: all but param and grad. Never changes.
class Setup {
public:
    Setup(py::object exp_row, py::object exp_col, py::object v, double lr, double beta2, double eps,
          double clip_threshold, bool scale_parameter, NonFinite nonfinite, int num_threads,
          bool carry_param_rms, bool stochastic, std::uint64_t seed)
        : hyper(seed_rule(lr, beta2, eps, clip_threshold, scale_parameter)),
          nonfinite(nonfinite),
          num_threads(num_threads),
          carries(carry_param_rms && scale_parameter),
          stochastic(stochastic),
          seed(seed),
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
        Tensor tensor{};
        tensor.param = param;
        tensor.grad = grad;
        tensor.row_axis = 0;
        tensor.col_axis = 1;
        tensor.hyper = hyper;
        tensor.stochastic = stochastic;
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
    const bool stochastic;
    const std::uint64_t seed;

private:
    static HyperParameters seed_rule(double lr, double beta2, double eps, double clip_threshold,
                                     bool scale_parameter) {
        HyperParameters hyper{};
        hyper.lr = lr;
        hyper.beta2 = beta2;
        hyper.eps_squares = hyper.eps_root = eps;
        hyper.clip_threshold = clip_threshold;
        hyper.scale_parameter = scale_parameter;
        return hyper;
    }

    static void require_shapes(const Tensor& tensor, int ndim, const std::ptrdiff_t* shape) {
        require_shape(tensor.param, "param", ndim, shape);
        require_shape(tensor.grad, "grad", ndim, shape);
    }

    const py::object exp_row_, exp_col_, v_;  // v is None, or the other two are
};

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

// A step and its count are one call: no signal, and no other thread, comes between them.
void update(Progress& progress, const Setup& setup, py::handle param, py::handle grad_or_scalar) {
    const Turn turn(progress.busy);
    const py::object grad = array_from(grad_or_scalar);
    Tensor tensor = setup.tensor(param, grad);
    tensor.random = RandomStream::of(setup.seed, progress.t + 1, 0);
    if (setup.carries)
        tensor.carried = progress.carried_for(param);
    else
        progress.carried.forget();
    const bool propagate = setup.nonfinite == NonFinite::propagate;
    const int threads = setup.num_threads > 0 ? setup.num_threads : max_threads();
    TensorReport report;
    const Outcome outcome = take_step(&tensor, 1, {propagate, true, false, threads}, &report);
    if (outcome.fault == Fault::none) {
        ++progress.t;
    } else if (setup.nonfinite == NonFinite::skip) {
        ++progress.skipped;
    } else {
        throw_floating_point_error(fault_text(outcome, tensor, param, "param", grad, "grad") +
                                   "; nothing was changed");
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
                 const Turn turn(progress.busy);
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
                         int nonfinite, int num_threads, bool carry_param_rms, bool stochastic,
                         std::uint64_t seed) {
                 return std::make_unique<Setup>(std::move(exp_row), std::move(exp_col),
                                                std::move(v), lr, beta2, eps, clip_threshold,
                                                scale_parameter, NonFinite(nonfinite), num_threads,
                                                carry_param_rms, stochastic, seed);
             }),
             py::arg("exp_row"), py::arg("exp_col"), py::arg("v"), py::arg("lr"), py::arg("beta2"),
             py::arg("eps"), py::arg("clip_threshold"), py::arg("scale_parameter"),
             py::arg("nonfinite"), py::arg("num_threads"), py::arg("carry_param_rms"),
             py::arg("stochastic"), py::arg("seed"));

    m.def("update", &update, "One step of one tensor, in place.", py::arg("progress"),
          py::arg("setup"), py::arg("param"), py::arg("grad"));
}

}  // namespace adafactor
