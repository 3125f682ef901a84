#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/buffers.hpp"
#include "bindings/take_step.hpp"
#include "bindings/turn.hpp"
#include "engine/carried.hpp"
#include "engine/threads.hpp"
#include "rule.hpp"

namespace adafactor {
namespace {

// The memory of an array that steps write to.
struct Held {
    std::string word, tensor;
    py::object object;
    const char *low, *high;  // first and one past the last byte

    Name name() const { return {word.c_str(), tensor}; }
};

// An array of the user's as it was when it was added: it must not be anything else later.
struct Given {
    py::object object;
    char* data = nullptr;
    Format format{};
    std::vector<std::ptrdiff_t> shape{}, strides{};

    Given() = default;
    Given(py::object object, const Array& array)
        : object(std::move(object)),
          data(array.data),
          format(array.format),
          shape(array.shape, array.shape + array.ndim),
          strides(array.strides, array.strides + array.ndim) {}

    bool exists() const { return bool(object); }

    Array now(const Name& name) const {
        const Array array = array_of(object, name, Access::write);
        if (array.data != data || array.format != format ||
            std::size_t(array.ndim) != shape.size() ||
            !std::equal(shape.begin(), shape.end(), array.shape) ||
            !std::equal(strides.begin(), strides.end(), array.strides))
            throw py::value_error(name.text() +
                                  " has changed its memory, shape, strides or dtype, must be as "
                                  "it was when the optimizer was made");
        return array;
    }
};

// A tensor with its state; None what it has not.
struct Slot {
    std::string name;
    Given param, copy;
    py::object exp_row, exp_col, v, m, master, low;
    int row_axis, col_axis;
    std::size_t group;
    bool decays;
    std::int64_t t = 0;
    CarriedSquares carried;
};

// The tensors of one optimizer and their state.
class Model {
public:
    explicit Model(bool carry_param_rms) : carries_(carry_param_rms) {}

    void add(const std::string& tensor, py::object param, py::object copy, py::object exp_row,
             py::object exp_col, py::object v, py::object m, py::object master, py::object low,
             int row_axis, int col_axis, std::size_t group, bool decays) {
        const Turn turn(busy_);
        const Array array = array_of(param, {"param", tensor}, Access::write);
        const auto require_params_shape = [&](const Array& other, const Name& name) {
            require_shape(other, name, array.ndim, array.shape);
        };
        std::vector<Held> held;
        hold(held, "param", tensor, param, array);
        auto slot = std::make_unique<Slot>();
        if (!copy.is_none()) {
            const Name name("copy", tensor);
            const Array halves = array_of(copy, name, Access::write);
            require_params_shape(halves, name);
            if (array.format != Format::float32 || !is_half(halves.format))
                throw py::type_error(name.text() +
                                     " must be of float16 or bfloat16, and params[...] of float32");
            hold(held, "copy", tensor, copy, halves);
            slot->copy = Given(std::move(copy), halves);
        }
        if (v.is_none()) {
            std::vector<std::ptrdiff_t> row_shape, col_shape;
            for (int d = 0; d < array.ndim; ++d) {
                if (d == row_axis || d == col_axis) continue;
                row_shape.push_back(array.shape[d]);
                col_shape.push_back(array.shape[d]);
            }
            row_shape.push_back(array.shape[row_axis]);
            col_shape.push_back(array.shape[col_axis]);
            hold_state(held, "exp_row", tensor, exp_row, row_shape);
            hold_state(held, "exp_col", tensor, exp_col, col_shape);
        } else {
            hold_state(held, "v", tensor, v, {array.shape, array.shape + array.ndim});
        }
        if (!m.is_none()) {
            const Name name("m", tensor);
            const Array first_moment = array_of(m, name, Access::write);
            require_params_shape(first_moment, name);
            if (array.format == Format::float64 ? first_moment.format != Format::float64
                                                : first_moment.format != Format::float32 &&
                                                      first_moment.format != Format::bfloat16)
                throw py::type_error(name.text() +
                                     " must be of float64 with a param of float64, or else of "
                                     "float32 or bfloat16");
            hold(held, "m", tensor, m, first_moment);
        }
        if (!master.is_none()) {
            const Name name("master", tensor);
            const Array floats = array_of(master, name, Access::write);
            require_params_shape(floats, name);
            if (!is_half(array.format) || floats.format != Format::float32)
                throw py::type_error(name.text() +
                                     " must be of float32, and param of float16 or bfloat16");
            hold(held, "master", tensor, master, floats);
        }
        if (!low.is_none()) {
            if (array.format != Format::bfloat16)
                throw py::type_error("a param with lower halves must be of bfloat16");
            hold(held, "low", tensor, low, low_halves_of(low, {"low", tensor}, array));
        }
        slot->name = tensor;
        slot->param = Given(std::move(param), array);
        slot->exp_row = std::move(exp_row);
        slot->exp_col = std::move(exp_col);
        slot->v = std::move(v);
        slot->m = std::move(m);
        slot->master = std::move(master);
        slot->low = std::move(low);
        slot->row_axis = row_axis;
        slot->col_axis = col_axis;
        slot->group = group;
        slot->decays = decays;
        slots_.push_back(std::move(slot));
        for (Held& one : held) held_.push_back(std::move(one));
        sort_held();
    }

    py::tuple step(const std::vector<const Rule*>& rules, const std::vector<double>& lr,
                   const std::vector<double>& decay, const py::sequence& grads_given,
                   double grad_scale, double max_grad_norm, int nonfinite, bool all_or_none,
                   int num_threads, std::uint64_t seed) {
        const Turn turn(busy_);
        const std::size_t n = slots_.size();
        const py::tuple grads(grads_given);  // holds them all, whatever becomes of the list
        if (grads.size() != n || lr.size() != rules.size() || decay.size() != rules.size())
            throw py::value_error(
                "as many grads as tensors, and lr and decay as rules, are needed");
        converted_.clear();
        tensors_.clear();
        stepping_.clear();
        for (std::size_t k = 0; k < n; ++k) {
            const py::handle grad = PyTuple_GET_ITEM(grads.ptr(), py::ssize_t(k));
            if (grad.is_none()) continue;
            Slot& slot = *slots_[k];
            const Rule& rule = *rules.at(slot.group);
            Tensor tensor = tensor_of(slot, grad);
            tensor.hyper =
                rule.at((rule.shared_t ? t_ : slot.t) + 1, lr[slot.group], decay[slot.group],
                        slot.decays, 1 / grad_scale, tensor.param.format);
            tensor.stochastic = rule.stochastic;
            tensor.random = RandomStream::of(seed, t_ + 1, k);
            if (carries_ && rule.scale_parameter)
                tensor.carried = &slot.carried;
            else
                slot.carried.forget();
            tensors_.push_back(tensor);
            stepping_.push_back(k);
        }
        const Options options{NonFinite(nonfinite) == NonFinite::propagate, all_or_none,
                              NonFinite(nonfinite) == NonFinite::skip,
                              num_threads > 0 ? num_threads : max_threads(), max_grad_norm};
        reports_.assign(tensors_.size(), {});
        const Counting counting(*this);
        const Outcome outcome =
            take_step(tensors_.data(), tensors_.size(), options, reports_.data());
        if (outcome.fault != Fault::none) {
            if (NonFinite(nonfinite) == NonFinite::raise) raise(outcome, grads, options);
            ++skipped_;
        }
        return results(outcome);
    }

    std::int64_t t() const { return t_; }
    std::int64_t skipped() const { return skipped_; }

    py::array_t<std::int64_t> counts() const {
        py::array_t<std::int64_t> counts{py::ssize_t(slots_.size())};
        for (std::size_t k = 0; k < slots_.size(); ++k) counts.mutable_at(k) = slots_[k]->t;
        return counts;
    }

    void set_counts(std::int64_t t, std::int64_t skipped, const std::vector<std::int64_t>& counts) {
        const Turn turn(busy_);
        if (counts.size() != slots_.size())
            throw py::value_error("as many counts as tensors are needed");
        t_ = t;
        skipped_ = skipped;
        for (std::size_t k = 0; k < counts.size(); ++k) slots_[k]->t = counts[k];
    }

    void forget_params() {
        const Turn turn(busy_);
        for (const auto& slot : slots_) slot->carried.forget();
    }

private:
    // Counts what was stepped, whatever else happens: no signal comes between a step and its count.
    class Counting {
    public:
        explicit Counting(Model& model) : model_(model) {}
        ~Counting() {
            bool any = model_.tensors_.empty();
            for (std::size_t k = 0; k < model_.tensors_.size(); ++k) {
                if (!model_.reports_[k].stepped) continue;
                ++model_.slots_[model_.stepping_[k]]->t;
                any = true;
            }
            if (any) ++model_.t_;
        }

    private:
        Model& model_;
    };

    // Notes memory that must not overlap any other that is held.
    void hold(std::vector<Held>& held, const char* word, const std::string& tensor,
              const py::object& object, const Array& array) const {
        const auto [low, high] = extent(array);
        const Held one{word, tensor, object, low, high};
        const auto check = [&](const Held& other) {
            if (low < other.high && other.low < high)
                require_no_shared_byte(object, one.name(), other.object, other.name());
        };
        std::for_each(held.begin(), held.end(), check);
        std::for_each(held_.begin(), held_.end(), check);
        held.push_back(one);
    }

    void hold_state(std::vector<Held>& held, const char* word, const std::string& tensor,
                    const py::object& object, const std::vector<std::ptrdiff_t>& shape) const {
        const Name name(word, tensor);
        const Array array = state_of(object, name);
        require_shape(array, name, int(shape.size()), shape.data());
        hold(held, word, tensor, object, array);
    }

    void sort_held() {
        std::sort(held_.begin(), held_.end(),
                  [](const Held& a, const Held& b) { return a.low < b.low; });
        highest_.resize(held_.size());
        const char* highest = nullptr;
        for (std::size_t k = 0; k < held_.size(); ++k)
            highest_[k] = highest = std::max(highest, held_[k].high);
    }

    void require_disjoint_from_held(py::handle object, const Array& array, const Name& name) const {
        const auto [low, high] = extent(array);
        const auto behind =
            std::lower_bound(held_.begin(), held_.end(), high,
                             [](const Held& one, const char* end) { return one.low < end; });
        const auto n = std::size_t(behind - held_.begin());
        if (n == 0 || highest_[n - 1] <= low) return;
        for (std::size_t k = 0; k < n; ++k)
            if (low < held_[k].high)
                require_no_shared_byte(object, name, held_[k].object, held_[k].name());
    }

    // The tensor as views, all checked.
    Tensor tensor_of(const Slot& slot, py::handle grad_or_scalar) {
        const Name param_name("param", slot.name), grad_name("grad", slot.name);
        const Array param = slot.param.now(param_name);
        py::handle grad_object = grad_or_scalar;
        if (!py::isinstance<py::array>(grad_object)) {
            converted_.push_back(array_from(grad_or_scalar));
            grad_object = converted_.back();
        }
        const Array grad = array_of(grad_object, grad_name, Access::read);
        require_shape(grad, grad_name, param.ndim, param.shape);
        require_disjoint_from_held(grad_object, grad, grad_name);

        Tensor tensor{};
        tensor.param = param;
        tensor.grad = grad;
        tensor.row_axis = slot.row_axis;
        tensor.col_axis = slot.col_axis;
        const auto doubles = [](const py::object& object) {
            return static_cast<double*>(py::reinterpret_borrow<py::array>(object).mutable_data());
        };
        if (slot.v.is_none()) {
            tensor.exp_row = doubles(slot.exp_row);
            tensor.exp_col = doubles(slot.exp_col);
        } else {
            tensor.v = doubles(slot.v);
        }
        if (!slot.m.is_none()) tensor.m = array_of(slot.m, {"m", slot.name}, Access::write);
        if (slot.copy.exists()) tensor.copy = slot.copy.now({"copy", slot.name});
        if (!slot.master.is_none()) {
            tensor.param = array_of(slot.master, {"master", slot.name}, Access::write);
            tensor.copy = param;
        }
        if (!slot.low.is_none()) {
            tensor.param.format = Format::split;
            tensor.param.low = low_halves_of(slot.low, {"low", slot.name}, param).data - param.data;
        }
        return tensor;
    }

    [[noreturn]] void raise(const Outcome& outcome, const py::tuple& grads,
                            const Options& options) const {
        const std::size_t k = stepping_[outcome.tensor];
        const Slot& slot = *slots_[k];
        const bool any = std::any_of(reports_.begin(), reports_.end(),
                                     [](const TensorReport& report) { return report.stepped; });
        const std::string changed =
            options.all_or_none || !any
                ? "; nothing was changed"
                : "; neither it nor the tensors behind it were changed, those before it were";
        throw_floating_point_error(fault_text(outcome, tensors_[outcome.tensor], slot.param.object,
                                              {"param", slot.name}, grads[k], {"grad", slot.name}) +
                                   changed);
    }

    // (n, 5) numbers, the norm of all gradients, which tensors were stepped
    py::tuple results(const Outcome& outcome) const {
        constexpr py::ssize_t kNumbers = 5;
        const auto n = py::ssize_t(slots_.size());
        py::array_t<double> numbers({n, kNumbers});
        py::array_t<bool> stepped{n};
        std::fill_n(numbers.mutable_data(), n * kNumbers, std::numeric_limits<double>::quiet_NaN());
        std::fill_n(stepped.mutable_data(), n, false);
        for (std::size_t i = 0; i < stepping_.size(); ++i) {
            const TensorReport& report = reports_[i];
            const std::size_t k = stepping_[i];
            const double row[kNumbers] = {report.rms_grad, report.rms_u, report.clip_divisor,
                                          report.rms_param, report.step_size};
            std::copy_n(row, kNumbers, numbers.mutable_data() + py::ssize_t(k) * kNumbers);
            stepped.mutable_data()[k] = report.stepped;
        }
        return py::make_tuple(numbers, outcome.grad_norm, stepped);
    }

    const bool carries_;
    std::atomic<bool> busy_{false};
    std::int64_t t_ = 0, skipped_ = 0;
    std::vector<std::unique_ptr<Slot>> slots_;
    std::vector<Held> held_;            // sorted by `low`
    std::vector<const char*> highest_;  // of held_ up to each

    // Of the step under way; kept for the next one's use.
    std::vector<Tensor> tensors_;
    std::vector<std::size_t> stepping_;  // their slots
    std::vector<TensorReport> reports_;
    std::vector<py::object> converted_;
};

}  // namespace

void bind_model(py::module_& m) {
    py::class_<Rule>(m, "Rule", "What the tensors of a group have in common. Immutable.")
        .def(py::init([](double beta2, double decay_rate, std::int64_t decay_offset,
                         bool bias_correction, double eps_squares, double eps_means,
                         double eps_root, double root_floor, double mean_floor,
                         double clip_threshold, bool per_matrix, bool scale_parameter,
                         double eps_scale, bool scale_after_decay, bool relative_step,
                         double warmup, double beta1, bool momentum_of_u, double decay_by_step,
                         bool maximize, bool stochastic, bool shared_t) {
                 return Rule{beta2,       decay_rate,        decay_offset,  bias_correction,
                             eps_squares, eps_means,         eps_root,      root_floor,
                             mean_floor,  clip_threshold,    per_matrix,    scale_parameter,
                             eps_scale,   scale_after_decay, relative_step, warmup,
                             beta1,       momentum_of_u,     decay_by_step, maximize,
                             stochastic,  shared_t};
             }),
             py::kw_only(), py::arg("beta2"), py::arg("decay_rate"), py::arg("decay_offset"),
             py::arg("bias_correction"), py::arg("eps_squares"), py::arg("eps_means"),
             py::arg("eps_root"), py::arg("root_floor"), py::arg("mean_floor"),
             py::arg("clip_threshold"), py::arg("per_matrix"), py::arg("scale_parameter"),
             py::arg("eps_scale"), py::arg("scale_after_decay"), py::arg("relative_step"),
             py::arg("warmup"), py::arg("beta1"), py::arg("momentum_of_u"),
             py::arg("decay_by_step"), py::arg("maximize"), py::arg("stochastic"),
             py::arg("shared_t"));

    py::class_<Model>(m, "Model", "The tensors of one optimizer and their state.")
        .def(py::init<bool>(), py::arg("carry_param_rms") = false)
        .def("add", &Model::add, py::arg("name"), py::arg("param"), py::arg("copy"),
             py::arg("exp_row"), py::arg("exp_col"), py::arg("v"), py::arg("m"), py::arg("master"),
             py::arg("low"), py::arg("row_axis"), py::arg("col_axis"), py::arg("group"),
             py::arg("decays"))
        .def("step", &Model::step,
             "One step of all tensors whose grad is not None, in place. Rules, lr and decay are "
             "the groups'; decay is what is taken from 1.",
             py::arg("rules"), py::arg("lr"), py::arg("decay"), py::arg("grads"),
             py::arg("grad_scale"), py::arg("max_grad_norm"), py::arg("nonfinite"),
             py::arg("atomic"), py::arg("num_threads"), py::arg("seed"))
        .def("counts", &Model::counts)
        .def("set_counts", &Model::set_counts, py::arg("t"), py::arg("skipped"), py::arg("counts"))
        .def("forget_params", &Model::forget_params)
        .def_property_readonly("t", &Model::t)
        .def_property_readonly("skipped", &Model::skipped);
}

}  // namespace adafactor
