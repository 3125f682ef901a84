#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/buffers.hpp"
#include "bindings/constructor.hpp"
#include "bindings/held_tensor.hpp"
#include "bindings/norm_window.hpp"
#include "bindings/plan.hpp"
#include "bindings/step_lock.hpp"
#include "bindings/take_step.hpp"
#include "bindings/written_memory.hpp"

namespace adafactor {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Whether the step size is zero because the tensor is: then it stays so for ever.
bool is_stuck(const HyperParameters& hyper, const TensorReport& report) {
    return report.stepped && hyper.scale_parameter && hyper.lr > 0 && report.rms_param == 0 &&
           report.step_size == 0;
}

// The tensors of one optimizer with their state, and their counts of steps.
constexpr py::ssize_t kNumbers = 5;

// What a step did that not every step does. adafactor_native/report.py has the same numbers.
enum Flag : std::uint8_t { kSkipped = 1, kSpike = 2, kNewlyStuck = 4 };

// What a step reports, of n tensors.
struct Results {
    explicit Results(std::size_t n) : Results(py::ssize_t(n)) {}

    py::array_t<double> numbers;  // (n, 5)
    py::array_t<double> norms;    // (2,): that of all gradients, and that above which it is a spike
    py::array_t<bool> stepped, stuck;
    py::array_t<std::int64_t> t;      // ()
    py::array_t<std::uint8_t> flags;  // (), of Flag

private:
    explicit Results(py::ssize_t n)
        : numbers({n, kNumbers}),
          norms(2),
          stepped(n),
          stuck(n),
          t(std::vector<py::ssize_t>{}),
          flags(std::vector<py::ssize_t>{}) {
        std::fill_n(numbers.mutable_data(), n * kNumbers, kNan);
        std::fill_n(stepped.mutable_data(), n, false);
        std::fill_n(stuck.mutable_data(), n, false);
    }
};

class Tensors {
public:
    Tensors() = default;

    Tensors(std::vector<std::ptrdiff_t> shape, const py::object& exp_row, const py::object& exp_col,
            const py::object& v) {
        held_.push_back(std::make_unique<HeldTensor>(std::move(shape), exp_row, exp_col, v));
        memory_.add(held_.front()->pieces());
    }

    // All of these groups, behind those that there are, or on an error none.
    void add(const py::sequence& groups) {
        const StepLock lock(occupancy_);
        std::vector<std::unique_ptr<HeldTensor>> added;
        std::vector<WrittenMemory::Piece> pieces;
        std::size_t n_groups = n_groups_;
        for (const py::handle group : groups) {
            for (const py::handle tensor : group) {
                added.push_back(std::make_unique<HeldTensor>(
                    py::reinterpret_borrow<py::object>(tensor), n_groups));
                for (const auto& piece : added.back()->pieces()) pieces.push_back(piece);
            }
            ++n_groups;
        }
        held_.reserve(held_.size() + added.size());
        memory_.add(std::move(pieces));
        for (auto& tensor : added) held_.push_back(std::move(tensor));
        n_groups_ = n_groups;
    }

    // One step of the only tensor, whose param is given. Returns its flags.
    int update(const Plan& plan, py::handle param_object, py::handle grad_or_scalar) {
        const StepLock lock(occupancy_);
        HeldTensor& held = *held_.at(0);
        const py::object grad_object = array_from(grad_or_scalar, Name("grad"));
        const Array param = array_of(param_object, "param", Access::write);
        const Array grad = array_of(grad_object, "grad", Access::read);
        const int ndim = int(held.shape.size());
        require_shape(param, "param", ndim, held.shape.data());
        require_shape(grad, "grad", ndim, held.shape.data());
        require_disjoint(param_object, param, "param", grad_object, grad, "grad");
        memory_.require_disjoint(param_object, param, "param");
        memory_.require_disjoint(grad_object, grad, "grad");
        require_count_left();
        if (state_was_seen_.exchange(false)) forget_numbers();
        Tensor tensor = planned(plan, held, param, grad, 1);
        held.known.param = KnownNumbers::kUnknown;  // it may be another than the last time
        if (tensor.carried != nullptr && !(last_param_ && last_param_().is(param_object))) {
            held.carried.forget();
            last_param_ = py::weakref(param_object);
        }
        TensorReport report;
        const Outcome outcome = take_step(&tensor, 1, plan.options(), &report);
        if (report.stepped) {
            ++held.t;
            ++t_;
            return note_stuck(held, is_stuck(tensor.hyper, report)) ? kNewlyStuck : 0;
        }
        if (plan.nonfinite != NonFinite::skip)
            throw_floating_point_error(
                fault_text(outcome, tensor, held, {param_object, "param"}, {grad_object, "grad"}) +
                "; nothing was changed");
        ++skipped_;
        return kSkipped;
    }

    // One step of all tensors whose grad is not None. Returns what make_report makes of the arrays
    // that the step fills: it is called before, for nothing may fail after a step. A tensor whose
    // param is found to be another than its master's follows it: follow(its position).
    py::object step(const Plan& plan, const py::sequence& grads_given, double grad_scale,
                    const py::function& make_report, const py::function& follow) {
        const StepLock lock(occupancy_);
        require_count_left();
        if (state_was_seen_.exchange(false)) forget_numbers();
        const py::tuple given(grads_given);  // holds them all, whatever becomes of the list
        if (given.size() != held_.size() || plan.rules.size() != n_groups_)
            throw py::value_error("as many grads as tensors, and rules as groups, are needed");
        const py::tuple grads = arrays_from(given);
        tensors_.clear();
        positions_.clear();
        for (std::size_t k = 0; k < held_.size(); ++k) {
            const py::handle grad_object = PyTuple_GET_ITEM(grads.ptr(), py::ssize_t(k));
            if (grad_object.is_none()) continue;
            HeldTensor& held = *held_[k];
            const Array param = held.param.now(held.name_of("param"));
            const Name grad_name = held.name_of("grad");
            const Array grad = array_of(grad_object, grad_name, Access::read);
            require_shape(grad, grad_name, param.ndim, param.shape);
            memory_.require_disjoint(grad_object, grad, grad_name);
            tensors_.push_back(planned(plan, held, param, grad, grad_scale));
            positions_.push_back(k);
        }
        Options options = plan.options();
        if (plan.leaves_out_spikes())
            options.skip_norm_above = norms_.limit(plan.skip_above);
        else
            norms_.clear();
        follow_params(options.threads, follow);
        reports_.assign(tensors_.size(), {});
        Results results(held_.size());
        const py::object report = make_report(results.numbers, results.norms, results.stepped,
                                              results.stuck, results.t, results.flags);
        Outcome outcome;
        {
            const Counting counting(*this, plan, outcome);
            outcome = take_step(tensors_.data(), tensors_.size(), options, reports_.data());
        }
        if (outcome.fault != Fault::none) {
            if (plan.nonfinite == NonFinite::raise) raise(outcome, grads, options);
            ++skipped_;
        }
        fill(results, outcome, options);
        return report;
    }

    // The gradients as a step would read them: arrays, where they were something that becomes one.
    py::tuple arrays(const py::sequence& grads) const {
        const py::tuple given(grads);
        if (given.size() != held_.size())
            throw py::value_error("as many grads as tensors are needed");
        return arrays_from(given);
    }

    std::int64_t t() const { return t_; }
    std::int64_t skipped() const { return skipped_; }

    py::array_t<std::int64_t> counts() const {
        py::array_t<std::int64_t> counts{py::ssize_t(held_.size())};
        for (std::size_t k = 0; k < held_.size(); ++k) counts.mutable_at(k) = held_[k]->t;
        return counts;
    }

    void set_counts(std::int64_t t, std::int64_t skipped, const std::vector<std::int64_t>& counts) {
        const StepLock lock(occupancy_, StepLock::Entry::load);
        if (counts.size() != held_.size())
            throw py::value_error("as many counts as tensors are needed");
        if (t < 0 || skipped < 0)
            throw py::value_error("t is " + std::to_string(t) + " and skipped " +
                                  std::to_string(skipped) + ", must be at least 0");
        for (const std::int64_t count : counts)
            if (count < 0 || count > t)
                throw py::value_error("the count of a tensor's steps is " + std::to_string(count) +
                                      ", must be in 0 to " + std::to_string(t));
        t_ = t;
        skipped_ = skipped;
        norms_.clear();
        for (std::size_t k = 0; k < counts.size(); ++k) held_[k]->t = counts[k];
        forget_carried();
    }

    std::vector<double> norms() const { return norms_.norms(); }

    void set_norms(const std::vector<double>& norms) {
        const StepLock lock(occupancy_, StepLock::Entry::load);
        norms_.clear();
        for (const double norm : norms) norms_.add(norm);
    }

    void forget_params() {
        const StepLock lock(occupancy_, StepLock::Entry::load);
        forget_carried();
    }

    // Python has been given arrays of the state: the next step looks at them whole.
    void state_was_seen() { state_was_seen_ = true; }

    // What the function returns; no step begins while it runs.
    py::object alone(const py::function& function, bool loads) {
        const StepLock lock(occupancy_,
                            loads ? StepLock::Entry::alone_load : StepLock::Entry::alone);
        return function();
    }

private:
    // Counts what was stepped, whatever else happens: no signal comes between a step and its count.
    class Counting {
    public:
        Counting(Tensors& all, const Plan& plan, const Outcome& outcome)
            : all_(all), plan_(plan), outcome_(outcome) {}
        ~Counting() {
            if (outcome_.is_spike) ++all_.skipped_;
            if (plan_.leaves_out_spikes() && outcome_.fault == Fault::none &&
                !all_.tensors_.empty())
                all_.norms_.add(outcome_.grad_norm);
            bool any = all_.tensors_.empty();
            for (std::size_t k = 0; k < all_.tensors_.size(); ++k) {
                if (!all_.reports_[k].stepped) continue;
                ++all_.held_[all_.positions_[k]]->t;
                any = true;
            }
            if (any) ++all_.t_;
        }

    private:
        Tensors& all_;
        const Plan& plan_;
        const Outcome& outcome_;
    };

    // Whether the tensor is stuck for the first time.
    static bool note_stuck(HeldTensor& held, bool stuck) {
        const bool newly = stuck && !held.was_stuck;
        held.was_stuck |= stuck;
        return newly;
    }

    // Counts wrap at no step.
    void require_count_left() const {
        if (std::max(t_, skipped_) >= std::int64_t(1) << 53)
            throw py::value_error(
                "the count of steps is 2**53, the largest that every number of it holds: load a "
                "state with a smaller t and skipped");
    }

    static bool is_rounded(const Tensor& tensor, int threads) {
        constexpr std::size_t elements_under_gil = std::size_t(1) << 16;  // a sixteenth is read
        std::optional<py::gil_scoped_release> no_python_below;
        if (size_of(tensor.param) > elements_under_gil) no_python_below.emplace();
        return is_still_rounded(tensor, threads);
    }

    void follow_params(int threads, const py::function& follow) {
        for (std::size_t k = 0; k < tensors_.size(); ++k) {
            HeldTensor& held = *held_[positions_[k]];
            if (!held.master.exists() || is_rounded(tensors_[k], threads)) continue;
            follow(positions_[k]);
            held.carried.forget();
            held.known.forget();
        }
    }

    // The gradients, arrays where they were something that becomes one: all are, before the first
    // is looked at. The same tuple, where there is no such gradient.
    py::tuple arrays_from(const py::tuple& given) const {
        const auto is_array_or_none = [](py::handle grad) {
            return grad.is_none() || py::isinstance<py::array>(grad);
        };
        if (std::all_of(given.begin(), given.end(), is_array_or_none)) return given;
        py::tuple arrays(given.size());
        for (std::size_t k = 0; k < held_.size(); ++k) {
            const py::object grad = given[k];
            arrays[k] = is_array_or_none(grad) ? grad : array_from(grad, held_[k]->name_of("grad"));
        }
        return arrays;
    }

    // The tensor with what the plan makes of it at its next step.
    Tensor planned(const Plan& plan, HeldTensor& held, const Array& param, const Array& grad,
                   double grad_scale) {
        const Rule& rule = plan.rules[held.group];
        Tensor tensor = held.with(param, grad);
        tensor.hyper =
            rule.at((rule.shared_t ? t_ : held.t) + 1, plan.lr[held.group], plan.decay[held.group],
                    held.decays, 1 / grad_scale, tensor.param.format);
        tensor.stochastic = rule.stochastic;
        tensor.random = RandomStream::of(plan.seed, held.t + 1, held.random_key);
        if (plan.carry_param_rms && rule.scale_parameter)
            tensor.carried = &held.carried;
        else
            held.carried.forget();
        if (held.shares_state()) held.known.forget();
        tensor.known = &held.known;
        // Not every tensor's turn is the same.
        held.known.turn = (std::uint64_t(held.t) + held.random_key) % KnownNumbers::kRotation;
        return tensor;
    }

    void forget_carried() {
        for (const auto& held : held_) held->carried.forget();
        forget_numbers();
    }

    void forget_numbers() {
        for (const auto& held : held_) held->known.forget();
    }

    [[noreturn]] void raise(const Outcome& outcome, const py::tuple& grads,
                            const Options& options) const {
        const std::size_t k = positions_[outcome.tensor];
        const HeldTensor& held = *held_[k];
        const bool any = std::any_of(reports_.begin(), reports_.end(),
                                     [](const TensorReport& report) { return report.stepped; });
        const std::string changed =
            options.all_or_none || !any
                ? "; nothing was changed"
                : "; neither it nor the tensors behind it were changed, those before it were";
        throw_floating_point_error(fault_text(outcome, tensors_[outcome.tensor], held,
                                              {held.param.object(), held.name_of("param")},
                                              {grads[k], held.name_of("grad")}) +
                                   changed);
    }

    void fill(Results& results, const Outcome& outcome, const Options& options) {
        bool any_newly_stuck = false;
        for (std::size_t i = 0; i < positions_.size(); ++i) {
            const TensorReport& report = reports_[i];
            const std::size_t k = positions_[i];
            const double row[kNumbers] = {report.rms_grad, report.rms_u, report.clip_divisor,
                                          report.rms_param, report.step_size};
            std::copy_n(row, kNumbers, results.numbers.mutable_data() + py::ssize_t(k) * kNumbers);
            results.stepped.mutable_data()[k] = report.stepped;
            const bool stuck = is_stuck(tensors_[i].hyper, report);
            results.stuck.mutable_data()[k] = stuck;
            any_newly_stuck |= note_stuck(*held_[k], stuck);
        }
        results.norms.mutable_data()[0] = outcome.grad_norm;
        results.norms.mutable_data()[1] =
            options.skip_norm_above == std::numeric_limits<double>::max()
                ? std::numeric_limits<double>::infinity()
                : options.skip_norm_above;
        *results.t.mutable_data() = t_;
        const bool skipped = outcome.fault != Fault::none || outcome.is_spike;
        *results.flags.mutable_data() =
            std::uint8_t((skipped ? kSkipped : 0) | (outcome.is_spike ? kSpike : 0) |
                         (any_newly_stuck ? kNewlyStuck : 0));
    }

    Occupancy occupancy_;
    std::int64_t t_ = 0, skipped_ = 0;
    NormWindow norms_;  // of steps that may be left out as spikes
    std::size_t n_groups_ = 0;
    std::vector<std::unique_ptr<HeldTensor>> held_;
    WrittenMemory memory_;
    py::weakref last_param_;  // of update, if its RMS is carried
    std::atomic<bool> state_was_seen_{true};

    // These belong to the step under way, and are kept for the next one's use.
    std::vector<Tensor> tensors_;
    std::vector<std::size_t> positions_;  // theirs in held_
    std::vector<TensorReport> reports_;
};

}  // namespace

void bind_tensors(py::module_& m) {
    m.attr("most_norms") = NormWindow::kMost;
    py::class_<Tensors> tensors(
        m, "Tensors", "The tensors of one optimizer with their state, and their counts of steps.");
    allocate_safely(tensors);
    const auto make = [](const auto&... given) { return std::make_unique<Tensors>(given...); };
    def_constructor<>(tensors, make);
    def_constructor<const std::vector<std::ptrdiff_t>&, const py::object&, const py::object&,
                    const py::object&>(tensors, make,
                                       "One tensor, whose param is given to every update. Either "
                                       "exp_row and exp_col or v is None.",
                                       py::arg("shape"), py::arg("exp_row"), py::arg("exp_col"),
                                       py::arg("v"));
    tensors
        .def("add", &Tensors::add, "Add groups of tensors, or on an error none.", py::arg("groups"))
        .def("update", &Tensors::update,
             "One step of the only tensor, in place; what was unusual, as flags.", py::arg("plan"),
             py::arg("param"), py::arg("grad"))
        .def("step", &Tensors::step, "One step of all tensors whose grad is not None, in place.",
             py::arg("plan"), py::arg("grads"), py::arg("grad_scale"), py::arg("make_report"),
             py::arg("follow"))
        .def("arrays", &Tensors::arrays,
             "Gradients as a step would read them: arrays, where they become some.",
             py::arg("grads"))
        .def("alone", &Tensors::alone,
             "Call a function while no step begins; one that loads all state may be called where a "
             "fork has cut a step off.",
             py::arg("function"), py::arg("loads") = false)
        .def("counts", &Tensors::counts)
        .def("set_counts", &Tensors::set_counts,
             "Set all counts of steps and forget the norms of their gradients; the next step reads "
             "params whole.",
             py::arg("t"), py::arg("skipped"), py::arg("counts"))
        .def("norms", &Tensors::norms,
             "Norms of the last steps' gradients, the oldest first, where skip_above needs them.")
        .def("set_norms", &Tensors::set_norms, py::arg("norms"))
        .def("forget_params", &Tensors::forget_params)
        .def("state_was_seen", &Tensors::state_was_seen,
             "Say that somebody may write to the state: the next step looks at it whole.")
        .def_property_readonly("t", &Tensors::t)
        .def_property_readonly("skipped", &Tensors::skipped);
}

}  // namespace adafactor
