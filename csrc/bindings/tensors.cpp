#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/buffers.hpp"
#include "bindings/constructor.hpp"
#include "bindings/following.hpp"
#include "bindings/held_tensor.hpp"
#include "bindings/norm_window.hpp"
#include "bindings/plan.hpp"
#include "bindings/results.hpp"
#include "bindings/sharded_step.hpp"
#include "bindings/step_lock.hpp"
#include "bindings/take_step.hpp"
#include "bindings/without_gil.hpp"
#include "bindings/written_memory.hpp"

namespace adafactor {
namespace {

// Whether the step size is zero because the tensor is: then it stays so for ever.
bool is_stuck(const HyperParameters& hyper, const TensorReport& report) {
    return report.stepped && hyper.scale_parameter && hyper.lr > 0 && report.rms_param == 0 &&
           report.step_size == 0;
}

// The tensors of one optimizer with their state, and their counts of steps.
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
        if (open_ != nullptr) throw py::value_error(kStepIsOpen);
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
        const HeldTensor* const first = !held_.empty()   ? held_[0].get()
                                        : !added.empty() ? added[0].get()
                                                         : nullptr;
        for (const auto& tensor : added)
            if (tensor->part.has_value() != first->part.has_value())
                throw py::value_error(tensor->name_of("param").text() + " and " +
                                      first->name_of("param").text() +
                                      " must both be parts of tensors, or both be whole");
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
            throw_floating_point_error(fault_text(outcome, tensor, {param_object, "param"},
                                                  {grad_object, "grad"}, {held.m.object(), "m"},
                                                  &held) +
                                       "; nothing was changed");
        ++skipped_;
        return kSkipped;
    }

    // One step of all tensors whose grad is not None, or was measured; it ends the step that
    // step_tensor has begun. What was measured is divided by measured_scale, all else by
    // grad_scale. Returns what make_report makes of the arrays that the step fills: it is called
    // before, for nothing may fail after a step. A master whose param is found to be another's
    // becomes what follow(position) returns, or stays for None; where params are new, all are asked
    // for. Where the step does not take place, they are as they were.
    py::object step(const Plan& plan, const py::sequence& grads_given, double grad_scale,
                    const py::function& make_report, const py::function& follow,
                    double measured_scale, bool params_are_new) {
        const StepLock lock(occupancy_);
        require_count_left();
        require_no_parts();
        const py::tuple given(grads_given);  // holds them all, whatever becomes of the list
        if (given.size() != held_.size() || plan.rules.size() != n_groups_)
            throw py::value_error("as many grads as tensors, and rules as groups, are needed");
        const py::tuple grads = with_measured(arrays_from(given));
        if (state_was_seen_.exchange(false)) forget_numbers();  // by what made arrays, too
        if (params_are_new) forget_carried();
        begin_list();
        for (std::size_t k = 0; k < held_.size(); ++k) {
            const py::handle grad = PyTuple_GET_ITEM(grads.ptr(), py::ssize_t(k));
            if (grad.is_none()) continue;
            require_not_stepped(k);
            const bool is_given = !given[k].is_none();
            add_to_list(plan, k, grad, is_given ? grad_scale : measured_scale);
        }
        Options options = plan.options();
        if (plan.leaves_out_spikes())
            options.skip_norm_above = norms_.limit(plan.skip_above);
        else
            norms_.clear();
        Following following(reports_, positions_);
        follow_params(following, options.threads, follow, params_are_new);
        reports_.assign(tensors_.size(), {});
        std::optional<ModelStep> own;
        if (open_ == nullptr) own.emplace(held_.size(), make_report);
        given_now_.assign(held_.size(), false);
        for (const std::size_t k : positions_) given_now_[k] = true;
        ModelStep& model = own ? *own : *open_;
        Outcome outcome;
        {
            Spending spending(*this);
            {
                const Counting counting(*this, plan, outcome, open_ == nullptr);
                outcome = take_step(tensors_.data(), tensors_.size(), options, reports_.data());
            }
            const bool raises = outcome.fault != Fault::none && plan.nonfinite == NonFinite::raise;
            if (raises && open_ != nullptr) note_in(*open_, outcome, true);
            if (raises) raise(outcome, grads[positions_[outcome.tensor]], changed_by(options));
            spending.spend_all();
        }
        if (is_well(outcome)) following.keep_all();
        if (open_ != nullptr) {
            note_in(*open_, outcome, false);
            return end_open();
        }
        if (outcome.fault != Fault::none) ++skipped_;
        given_before_.swap(given_now_);
        note(model.results, outcome, false);
        model.results.finish(outcome.grad_norm, options.skip_norm_above, t_);
        return model.report;
    }

    // Begins a step of tensors that lie in pieces, which this object cannot be used beside until it
    // is over. As step; a tensor without a gradient here must have none on any rank, but for those
    // that have no elements of it: for these None is whatever the others give.
    std::unique_ptr<DrivenStep> begin_sharded_step(
        const Plan& plan, const py::sequence& grads_given, double grad_scale,
        const py::function& make_report, const py::function& follow, std::size_t n_header_max,
        std::size_t n_header_sum, double measured_scale, bool exact, bool params_are_new,
        std::size_t bucket_length) {
        auto host = std::make_unique<Sharded>(*this, plan);
        require_count_left();
        require_parts();
        if (!plan.all_or_none)
            throw py::value_error("a sharded step is all or nothing: atomic must be 'all'");
        if (open_ != nullptr) throw py::value_error(kStepIsOpen);
        const py::tuple given(grads_given);
        if (given.size() != held_.size() || plan.rules.size() != n_groups_)
            throw py::value_error("as many grads as tensors, and rules as groups, are needed");
        host->grads = with_measured(arrays_from(given));
        if (state_was_seen_.exchange(false)) forget_numbers();
        if (params_are_new) forget_carried();
        begin_list();
        for (std::size_t k = 0; k < held_.size(); ++k) {
            py::handle grad = PyTuple_GET_ITEM(host->grads.ptr(), py::ssize_t(k));
            grad = grad_or_nothing(k, grad);
            if (grad.is_none()) continue;
            add_to_list(plan, k, grad, given[k].is_none() ? measured_scale : grad_scale);
        }
        host->options = plan.options();
        if (plan.leaves_out_spikes())
            host->options.skip_norm_above = norms_.limit(plan.skip_above);
        else
            norms_.clear();
        follow_params(host->following, host->options.threads, follow, params_are_new);
        host->given.assign(held_.size(), false);
        for (std::size_t i = 0, k = 0; k < held_.size(); ++k) {
            host->given[k] = i < positions_.size() && positions_[i] == k;
            host->tensors.push_back(host->given[k] ? tensors_[i++] : without_grad(plan, k));
        }
        host->model.emplace(held_.size(), make_report);
        if (sharded_memory_ == nullptr) sharded_memory_ = std::make_unique<ShardedMemory>();
        return std::make_unique<DrivenStep>(std::move(host), *sharded_memory_,
                                            Buckets{bucket_length, n_header_max, n_header_sum},
                                            exact);
    }

    // What the first round of begin_sharded_step would begin as, for a rank that cannot step.
    py::array_t<double> mute_round(const Plan& plan, std::size_t n_header_max, bool exact,
                                   std::size_t bucket_length) {
        const StepLock lock(occupancy_);
        require_parts();
        std::vector<Tensor> tensors;
        for (std::size_t k = 0; k < held_.size(); ++k) tensors.push_back(without_grad(plan, k));
        return array_of_message(std::make_shared<std::vector<double>>(ShardedStep::mute_round(
            tensors.data(), tensors.size(), Buckets{bucket_length, n_header_max}, exact)));
    }

    // Takes the first sweep of the next step over tensor k, and holds its gradient until then.
    // Where params are new, masters follow them as in a step.
    void measure(const Plan& plan, std::size_t k, py::handle grad_given,
                 std::optional<double> grad_scale, const py::function& follow,
                 bool params_are_new) {
        const StepLock lock(occupancy_);
        HeldTensor& held = *held_.at(k);
        const Name grad_name = held.name_of("grad");
        const auto object = py::reinterpret_borrow<py::object>(
            grad_or_nothing(k, array_from(grad_given, grad_name)));
        if (held.measured_grad != nullptr)
            throw py::value_error(
                grad_name.text() +
                " is measured already and waits for a step: take it by opt.step(), or drop it by "
                "opt.discard_measured()");
        require_not_stepped(k);
        if (state_was_seen_.exchange(false)) forget_numbers();
        if (params_are_new) forget_carried();
        begin_list();
        add_to_list(plan, k, object, grad_scale.value_or(1));
        Following following(reports_, positions_);
        if (params_are_new) follow_all(following, follow);
        auto measured = std::make_unique<MeasuredGrad>(object, tensors_[0].grad, grad_scale);
        measured->measure(tensors_[0], plan.options().threads);
        following.keep_all();
        held.measured_grad = std::move(measured);
        ++n_measured_;
    }

    void discard_measured() {
        const StepLock lock(occupancy_);
        n_measured_ = 0;
        for (const auto& held : held_) held->measured_grad.reset();
    }

    // Of each tensor the bytes that are held since its gradient was measured, or None.
    py::list measured() const {
        return list_of([&](std::size_t k) {
            const MeasuredGrad* const measured = held_[k]->measured_grad.get();
            return measured == nullptr ? py::none().release().ptr()
                                       : PyLong_FromSize_t(measured->n_bytes());
        });
    }

    bool has_measured() const { return n_measured_ > 0; }

    // Whether the next step has gradients before it is called.
    bool waits() const { return n_measured_ > 0 || open_ != nullptr; }

    // Steps tensor k, as part of a step of the model that it begins where none is open. Returns
    // the report of that step, so far.
    py::object step_tensor(const Plan& plan, std::size_t k, py::handle grad_given,
                           double grad_scale, const py::function& make_report,
                           const py::function& follow, bool params_are_new) {
        const StepLock lock(occupancy_);
        require_count_left();
        require_no_parts();
        const HeldTensor& held = *held_.at(k);
        const Name grad_name = held.name_of("grad");
        const py::object grad = array_from(grad_given, grad_name);
        if (held.measured_grad != nullptr)
            throw py::value_error(grad_name.text() +
                                  " is measured and waits for opt.step(): drop it by "
                                  "opt.discard_measured() before opt.step_tensor");
        require_not_stepped(k);
        if (state_was_seen_.exchange(false)) forget_numbers();
        if (params_are_new) forget_carried();
        begin_list();
        add_to_list(plan, k, grad, grad_scale);
        const Options options = plan.options();
        Following following(reports_, positions_);
        follow_params(following, options.threads, follow, params_are_new);
        reports_.assign(1, {});
        std::unique_ptr<OpenStep> begun;
        if (open_ == nullptr) begun = std::make_unique<OpenStep>(held_.size(), make_report, t_ + 1);
        OpenStep& open = begun != nullptr ? *begun : *open_;
        Outcome outcome;
        {
            const Counting counting(*this, plan, outcome, false);
            outcome = take_step(tensors_.data(), 1, options, reports_.data());
        }
        if (outcome.fault != Fault::none && plan.nonfinite == NonFinite::raise)
            raise(outcome, grad, "; it was not changed" + stepped_before());
        if (is_well(outcome)) following.keep_all();
        note_in(open, outcome, false);
        if (begun != nullptr) open_ = std::move(begun);
        return open.report;
    }

    // Whether step_tensor has begun a step that step has not ended yet.
    bool is_open() const { return open_ != nullptr; }

    // Which tensors had a gradient in the last step, or have had one in the open step.
    py::list given() const {
        const std::vector<bool>& given = open_ != nullptr ? open_->was_given : given_before_;
        return list_of(
            [&](std::size_t k) { return PyBool_FromLong(k < given.size() && given[k]); });
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
        if (open_ != nullptr) throw py::value_error(kStepIsOpen);
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
        return stops_where_unwound([&] { return py::object(function()); });
    }

private:
    static constexpr const char* kStepIsOpen =
        "a step that opt.step_tensor has begun is open: end it by opt.step()";

    // A step of the model that step_tensor has begun.
    struct OpenStep : ModelStep {
        OpenStep(std::size_t n, const py::function& make_report, std::int64_t t)
            : ModelStep(n, make_report), was_given(n), norm_sq(n) {
            *results.t.mutable_data() = t;
        }

        std::vector<bool> was_given;  // its gradient was taken, or left out as not finite
        std::vector<double> norm_sq;  // of the gradients, after grad_scale
    };

    // Counts what was stepped, whatever else happens: no signal comes between a step and its count.
    class Counting {
    public:
        Counting(Tensors& all, const Plan& plan, const Outcome& outcome, bool counts_model)
            : all_(all), plan_(plan), outcome_(outcome), counts_model_(counts_model) {}
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
            if (any && counts_model_) ++all_.t_;
        }

    private:
        Tensors& all_;
        const Plan& plan_;
        const Outcome& outcome_;
        bool counts_model_;
    };

    // After a step, lets go of the gradients that waited for it: of those stepped, or of all. What
    // was measured of others is used up.
    class Spending {
    public:
        explicit Spending(Tensors& all) : all_(all) {}
        void spend_all() { spends_all_ = true; }
        ~Spending() {
            for (std::size_t i = 0; i < all_.positions_.size() && all_.has_measured(); ++i) {
                auto& waiting = all_.held_[all_.positions_[i]]->measured_grad;
                if (waiting == nullptr) continue;
                if (spends_all_ || all_.reports_[i].stepped) {
                    --all_.n_measured_;
                    waiting.reset();
                } else {
                    waiting->forget();
                }
            }
        }

    private:
        Tensors& all_;
        bool spends_all_ = false;
    };

    // A sharded step under way, which keeps this object to itself.
    struct Sharded final : ShardedHost {
        Sharded(Tensors& owner, const Plan& of_step)
            : lock(owner.occupancy_),
              self(py::cast(&owner)),
              all(owner),
              plan(of_step),
              following(owner.reports_, owner.positions_) {}

        Name name_of(std::size_t k, const char* word) const override {
            return all.held_[k]->name_of(word);
        }
        py::object end(const ShardedOutcome& outcome, const std::string& message) override {
            return all.end_sharded(*this, outcome, message);
        }

        StepLock lock;
        py::object self;
        Tensors& all;
        Plan plan;
        py::tuple grads;
        std::optional<ModelStep> model;
        Following following;
    };

    py::object end_sharded(Sharded& step, const ShardedOutcome& sharded,
                           const std::string& message) {
        begin_list();
        reports_.clear();
        const Outcome& outcome = sharded.outcome;
        for (std::size_t k = 0; k < held_.size(); ++k) {
            // Of what this rank has nothing of, none is given if none was anywhere.
            const bool was_stepped = step.reports[k].stepped || !is_well(outcome);
            step.given[k] = step.given[k] && (held_[k]->part->has_a_say || was_stepped);
            if (!step.given[k]) continue;
            positions_.push_back(k);
            tensors_.push_back(step.tensors[k]);
            reports_.push_back(step.reports[k]);
        }
        const bool differs = sharded.presence_differs || sharded.grad_format_differs;
        {
            Spending spending(*this);
            if (differs) throw py::value_error(message + "; nothing was changed");
            {
                const Counting counting(*this, step.plan, outcome, true);
            }
            if (outcome.fault != Fault::none && step.plan.nonfinite == NonFinite::raise)
                throw_floating_point_error(message + "; nothing was changed");
            spending.spend_all();
        }
        if (is_well(outcome)) step.following.keep_all();
        if (outcome.fault != Fault::none) ++skipped_;
        given_before_.swap(step.given);
        note(step.model->results, outcome, false);
        step.model->results.finish(outcome.grad_norm, step.options.skip_norm_above, t_);
        return step.model->report;
    }

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
        std::optional<WithoutGil> no_python_below;
        if (size_of(tensor.param) > elements_under_gil) no_python_below.emplace();
        return is_still_rounded(tensor, threads);
    }

    // Whether the step took place, and all of it.
    static bool is_well(const Outcome& outcome) {
        return outcome.fault == Fault::none && !outcome.is_spike;
    }

    // Of the tensors on the list; where params are new, of all.
    void follow_params(Following& following, int threads, const py::function& follow,
                       bool params_are_new) {
        if (params_are_new) {
            follow_all(following, follow);
            return;
        }
        for (std::size_t k = 0; k < tensors_.size(); ++k) {
            HeldTensor& held = *held_[positions_[k]];
            if (!held.master.exists() || is_rounded(tensors_[k], threads)) continue;
            if (following.let_follow(held, positions_[k], follow)) tensors_[k].measured = nullptr;
        }
    }

    void follow_all(Following& following, const py::function& follow) {
        for (std::size_t k = 0, i = 0; k < held_.size(); ++k) {
            while (i < positions_.size() && positions_[i] < k) ++i;
            HeldTensor& held = *held_[k];
            if (!held.master.exists() && !held.low.exists()) continue;
            const bool follows = following.let_follow(held, k, follow);
            if (follows && i < positions_.size() && positions_[i] == k)
                tensors_[i].measured = nullptr;
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

    // Of a part without elements a gradient is None, or an array without elements of whatever
    // shape: its param is as good, which has the shape that the part has here.
    py::handle grad_or_nothing(std::size_t k, py::handle grad) const {
        const HeldTensor& held = *held_[k];
        if (!held.part || held.part->has_a_say) return grad;
        const bool is_nothing =
            grad.is_none() || py::reinterpret_borrow<py::array>(grad).size() == 0;
        return is_nothing ? py::handle(held.param.object()) : grad;
    }

    // A list of item(k), a new reference, of each tensor. pybind11's own has another error where
    // memory runs out.
    template <class Item>
    py::list list_of(const Item& item) const {
        const auto n = py::ssize_t(held_.size());
        py::object list = py::reinterpret_steal<py::object>(PyList_New(n));
        if (!list) throw py::error_already_set();
        for (py::ssize_t k = 0; k < n; ++k) {
            PyObject* const one = item(std::size_t(k));
            if (one == nullptr) throw py::error_already_set();
            PyList_SET_ITEM(list.ptr(), k, one);
        }
        return list;
    }

    // The gradients, those that were measured in the place of None. Throws ValueError where one was
    // measured and another is given.
    py::tuple with_measured(const py::tuple& grads) const {
        if (!has_measured()) return grads;
        py::tuple all(grads.size());
        for (std::size_t k = 0; k < held_.size(); ++k) {
            const MeasuredGrad* const measured = held_[k]->measured_grad.get();
            const py::object grad = grads[k];
            all[k] = measured != nullptr && grad.is_none() ? measured->object() : grad;
        }
        return all;
    }

    void require_not_stepped(std::size_t k) const {
        if (open_ != nullptr && open_->was_given[k])
            throw py::value_error(held_[k]->name_of("grad").text() +
                                  " was taken in this step already, which opt.step_tensor has "
                                  "begun: end it by opt.step()");
    }

    // The list that a step takes: no tensor yet.
    void begin_list() {
        tensors_.clear();
        positions_.clear();
        reports_.clear();
    }

    // Checks tensor k and its gradient.
    void add_to_list(const Plan& plan, std::size_t k, py::handle grad_object, double grad_scale) {
        HeldTensor& held = *held_[k];
        const Name param_name = held.name_of("param"), grad_name = held.name_of("grad");
        const Array param = held.param.now(param_name);
        const Array grad = array_of(grad_object, grad_name, Access::read);
        require_shape(grad, grad_name, param.ndim, param.shape);
        memory_.require_disjoint(grad_object, grad, grad_name);
        Tensor tensor = planned(plan, held, param, grad, grad_scale);
        if (held.measured_grad != nullptr) {
            held.measured_grad->require_same(grad, grad_name);
            held.measured_grad->require_scale(grad_scale, grad_name);
            tensor.measured = held.measured_grad->measured(param_name, grad_name);
        }
        tensors_.push_back(tensor);
        positions_.push_back(k);
    }

    // As a sharded step takes it where no rank has a gradient of it.
    Tensor without_grad(const Plan& plan, std::size_t k) {
        HeldTensor& held = *held_[k];
        Tensor tensor = planned(plan, held, held.param.now(held.name_of("param")), {}, 1);
        tensor.carried = nullptr;
        return tensor;
    }

    // All tensors are parts, or none is.
    void require_no_parts() const {
        if (!held_.empty() && held_[0]->part)
            throw py::value_error(held_[0]->name_of("param").text() +
                                  " is a part of a tensor: its steps are those of "
                                  "begin_sharded_step");
    }

    void require_parts() const {
        if (!held_.empty() && !held_[0]->part)
            throw py::value_error(held_[0]->name_of("param").text() +
                                  " is a whole tensor, must be a part for a sharded step");
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
        for (const auto& held : held_) {
            held->carried.forget();
            if (held->measured_grad != nullptr) held->measured_grad->forget();
        }
        forget_numbers();
    }

    void forget_numbers() {
        for (const auto& held : held_) held->known.forget();
    }

    [[noreturn]] void raise(const Outcome& outcome, const py::object& grad,
                            const std::string& changed) const {
        const HeldTensor& held = *held_[positions_[outcome.tensor]];
        throw_floating_point_error(fault_text(outcome, tensors_[outcome.tensor],
                                              {held.param.object(), held.name_of("param")},
                                              {grad, held.name_of("grad")},
                                              {held.m.object(), held.name_of("m")}, &held) +
                                   changed);
    }

    // What an error says that a step has changed.
    std::string changed_by(const Options& options) const {
        const bool any = std::any_of(reports_.begin(), reports_.end(),
                                     [](const TensorReport& report) { return report.stepped; });
        if (!options.all_or_none && any)
            return "; neither it nor the tensors behind it were changed, those before it were";
        return open_ == nullptr ? "; nothing was changed"
                                : "; it was not changed" + stepped_before();
    }

    // Which tensors step_tensor has stepped in the open step, if it has any.
    std::string stepped_before() const {
        constexpr std::size_t shown = 3;
        std::string names;
        std::size_t n = 0;
        if (open_ != nullptr)
            for (std::size_t k = 0; k < held_.size(); ++k)
                if (open_->results.stepped.data()[k] && n++ < shown)
                    names += (names.empty() ? "" : ", ") + held_[k]->name_of("param").text();
        if (n == 0) return "";
        if (n > shown) names += " and " + std::to_string(n - shown) + " more";
        return ", but " + names + (n == 1 ? " was" : " were") + " in this step before";
    }

    // The numbers of the tensors on the list, or of those stepped; and what was unusual.
    void note(Results& results, const Outcome& outcome, bool only_stepped) {
        bool any_newly_stuck = false;
        for (std::size_t i = 0; i < positions_.size(); ++i) {
            const TensorReport& report = reports_[i];
            if (only_stepped && !report.stepped) continue;
            const std::size_t k = positions_[i];
            const double row[kNumbers] = {report.rms_grad, report.rms_u, report.clip_divisor,
                                          report.rms_param, report.step_size};
            std::copy_n(row, kNumbers, results.numbers.mutable_data() + py::ssize_t(k) * kNumbers);
            results.stepped.mutable_data()[k] = report.stepped;
            const bool stuck = is_stuck(tensors_[i].hyper, report);
            results.stuck.mutable_data()[k] = stuck;
            any_newly_stuck |= note_stuck(*held_[k], stuck);
        }
        const bool skipped = (outcome.fault != Fault::none && !only_stepped) || outcome.is_spike;
        *results.flags.mutable_data() |=
            std::uint8_t((skipped ? kSkipped : 0) | (outcome.is_spike ? kSpike : 0) |
                         (any_newly_stuck ? kNewlyStuck : 0));
    }

    // Those of a part of the open step.
    void note_in(OpenStep& open, const Outcome& outcome, bool raises) {
        note(open.results, outcome, raises);
        for (std::size_t i = 0; i < positions_.size(); ++i) {
            if (raises && !reports_[i].stepped) continue;
            const double scale = tensors_[i].hyper.grad_scale;
            open.was_given[positions_[i]] = true;
            open.norm_sq[positions_[i]] = reports_[i].grad_sq * (scale * scale);
        }
    }

    // The model has taken the open step, if any tensor has, or none had a gradient.
    py::object end_open() {
        Results& results = open_->results;
        const bool* const stepped = results.stepped.data();
        const bool any_given = std::any_of(open_->was_given.begin(), open_->was_given.end(),
                                           [](bool given) { return given; });
        if (!any_given || std::any_of(stepped, stepped + held_.size(), [](bool x) { return x; }))
            ++t_;
        if (*results.flags.data() & kSkipped) ++skipped_;
        double sum = 0;
        for (const double norm_sq : open_->norm_sq) sum += norm_sq;
        results.finish(std::sqrt(sum), std::numeric_limits<double>::max(), t_);
        given_before_.swap(open_->was_given);
        py::object report = std::move(open_->report);
        open_.reset();
        return report;
    }

    Occupancy occupancy_;
    std::int64_t t_ = 0, skipped_ = 0;
    NormWindow norms_;  // of steps that may be left out as spikes
    std::size_t n_groups_ = 0;
    std::vector<std::unique_ptr<HeldTensor>> held_;
    WrittenMemory memory_;
    py::weakref last_param_;  // of update, if its RMS is carried
    std::atomic<bool> state_was_seen_{true};
    std::unique_ptr<ShardedMemory> sharded_memory_;  // since the first sharded step

    std::size_t n_measured_ = 0;      // gradients that wait for a step
    std::unique_ptr<OpenStep> open_;  // or null
    std::vector<bool> given_before_;  // whether each had a gradient in the last step

    // These belong to the step under way, and are kept for the next one's use.
    std::vector<bool> given_now_;
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
             py::arg("follow"), py::arg("measured_scale") = 1.0, py::arg("params_are_new") = false)
        .def("begin_sharded_step", &Tensors::begin_sharded_step,
             "Begin a step of tensors that lie in pieces.", py::arg("plan"), py::arg("grads"),
             py::arg("grad_scale"), py::arg("make_report"), py::arg("follow"),
             py::arg("n_header_max"), py::arg("n_header_sum"), py::arg("measured_scale") = 1.0,
             py::arg("exact") = false, py::arg("params_are_new") = false,
             py::arg("bucket_length") = Buckets::kLength)
        .def("mute_round", &Tensors::mute_round,
             "The first maximum as a rank begins it that has no part in it.", py::arg("plan"),
             py::arg("n_header_max"), py::arg("exact") = false,
             py::arg("bucket_length") = Buckets::kLength)
        .def("arrays", &Tensors::arrays,
             "Gradients as a step would read them: arrays, where they become some.",
             py::arg("grads"))
        .def("measure", &Tensors::measure,
             "Take the first sweep of the next step over one tensor, and hold its gradient.",
             py::arg("plan"), py::arg("position"), py::arg("grad"), py::arg("grad_scale"),
             py::arg("follow"), py::arg("params_are_new"))
        .def("discard_measured", &Tensors::discard_measured)
        .def("measured", &Tensors::measured,
             "Of each tensor the bytes held since its gradient was measured, or None.")
        .def_property_readonly("has_measured", &Tensors::has_measured)
        .def_property_readonly("waits", &Tensors::waits)
        .def("step_tensor", &Tensors::step_tensor,
             "Step one tensor, as part of a step of the model that step ends.", py::arg("plan"),
             py::arg("position"), py::arg("grad"), py::arg("grad_scale"), py::arg("make_report"),
             py::arg("follow"), py::arg("params_are_new") = false)
        .def_property_readonly("is_open", &Tensors::is_open)
        .def("given", &Tensors::given, "Which tensors had a gradient in the last step.")
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
