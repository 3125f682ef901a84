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
#include "bindings/plan.hpp"
#include "bindings/preset_float.hpp"
#include "bindings/take_step.hpp"
#include "bindings/torch_gather.hpp"
#include "bindings/torch_group.hpp"
#include "bindings/torch_measured.hpp"
#include "bindings/torch_overlaps.hpp"
#include "bindings/torch_tensors.hpp"
#include "engine/threads.hpp"

namespace adafactor {
namespace {

// What a step needs besides the tensors' own memory; kept from one to the next.
struct Workspace {
    Gathered gathered;
    Overlaps overlaps;
    std::vector<TensorReport> reports;
};

struct StepOptions {
    NonFinite nonfinite;
    double max_grad_norm;
    int num_threads;
    std::uint64_t seed;
    double grad_scale;
    std::int64_t t;   // of tensors that share it; 0: one more than any has taken
    bool only_looks;  // whether anything must be made ready, and takes no step

    // Whether one tensor's fault is another's affair.
    bool is_whole() const {
        return nonfinite != NonFinite::propagate || std::isfinite(max_grad_norm);
    }

    Options options() const {
        return {nonfinite == NonFinite::propagate, is_whole(), nonfinite == NonFinite::skip,
                num_threads > 0 ? num_threads : max_threads(), max_grad_norm};
    }
};

// Steps lists of tensors of torch that it finds anew each time.
class TorchSteps {
public:
    TorchSteps(const py::object& reader, const py::object& names)
        : reader_object_(reader),
          names_object_(names),
          reader_(reader.cast<const TorchReader&>()),
          names_(names.cast<const TorchNames&>()) {}

    ~TorchSteps() { delete spare_.load(); }

    TorchSteps(const TorchSteps&) = delete;
    TorchSteps& operator=(const TorchSteps&) = delete;

    // One step of all parameters with a gradient, which takes what was `measured` of them before,
    // if that is not null. Returns five things: those stepped, or None where nothing was done
    // because of the next two; (group, param) whose state must be made or changed; those that are
    // no plain tensors; the norm of the gradients; whether the step was left out.
    py::tuple step(const py::sequence& given, const py::dict& state, const StepOptions& options,
                   TorchMeasured* measured) {
        const std::vector<GatheredGroup> groups = groups_of(given);
        const Gatherer gatherer(reader_, names_, state);
        const std::int64_t shared_t = shared_t_of(groups, gatherer, options);

        const Borrowed work(*this);
        Gathered& gathered = work->gathered;
        gatherer.gather(groups, 0, 0, gathered);
        std::size_t n = sort_out_overlaps(*work);
        const py::list unready = gathered.unready, foreign = gathered.foreign;
        if (n < gathered.tensors.size() && options.is_whole()) refuse_shared(gathered.tensors[n]);
        if (options.only_looks || py::len(unready) > 0 ||
            (options.is_whole() && py::len(foreign) > 0))
            return py::make_tuple(py::none(), unready, foreign, 0.0, false);

        // Nothing that can fail is left for when a step has been taken.
        py::tuple result(5);
        PresetFloat norm;
        py::list stepped;
        double grad_sq = 0;
        bool skipped = false;
        while (!gathered.tensors.empty()) {
            const std::size_t size = gathered.tensors.size();
            const auto next = n < size
                                  ? std::pair(std::size_t(gathered.tensors[n].group - &groups[0]),
                                              gathered.tensors[n].index)
                                  : std::pair(groups.size(), std::size_t(0));
            const Outcome outcome = step_first(n, shared_t, options, *work, measured, stepped);
            grad_sq += outcome.grad_norm * outcome.grad_norm;
            skipped |= outcome.fault != Fault::none;
            if (n == size) break;
            gatherer.gather(groups, next.first, next.second, gathered);
            n = sort_out_overlaps(*work);
            measured = nullptr;  // what is left shares memory with what was just stepped
        }
        result[0] = stepped;
        result[1] = unready;
        result[2] = foreign;
        result[3] = norm.with(std::sqrt(grad_sq));
        result[4] = py::bool_(skipped);
        return result;
    }

    // Measures the gradients of the next step for it, while they are in cache; those of tensors
    // whose state is ready.
    void measure(const py::sequence& given, const py::dict& state, const StepOptions& options,
                 TorchMeasured& measured) {
        const std::vector<GatheredGroup> groups = groups_of(given);
        const Gatherer gatherer(reader_, names_, state);
        const std::int64_t shared_t = shared_t_of(groups, gatherer, options);
        const Borrowed work(*this);
        gatherer.gather(groups, 0, 0, work->gathered);
        set_hyper_parameters(work->gathered.tensors.size(), shared_t, options, *work);
        const int threads = options.options().threads;
        for (std::size_t k = 0; k < work->gathered.tensors.size(); ++k)
            measured.measure(work->gathered.tensors[k], work->gathered.steps[k], threads);
    }

private:
    // Hyper-parameters as they are at a step of a group's tensors of one format.
    struct Resolved {
        const GatheredGroup* group;
        std::int64_t t;
        Format format;
        HyperParameters hyper;
    };

    // The workspace, or another one where this is in use: by another thread, whose tensors may be
    // others of the same optimizer.
    class Borrowed {
    public:
        explicit Borrowed(TorchSteps& owner)
            : owner_(owner), work_(owner.spare_.exchange(nullptr)) {
            if (work_ == nullptr) work_ = new Workspace;
        }
        ~Borrowed() {
            work_->gathered.clear();
            delete owner_.spare_.exchange(work_);
        }
        Borrowed(const Borrowed&) = delete;
        Borrowed& operator=(const Borrowed&) = delete;
        Workspace* operator->() const { return work_; }
        Workspace& operator*() const { return *work_; }

    private:
        TorchSteps& owner_;
        Workspace* work_;
    };

    static std::vector<GatheredGroup> groups_of(const py::sequence& given) {
        std::vector<GatheredGroup> groups;
        groups.reserve(py::len(given));
        for (const py::handle one : given) {
            const py::tuple group = py::reinterpret_borrow<py::tuple>(one);
            groups.push_back({group[0], group[0].cast<const TorchGroup*>(), group[1].cast<double>(),
                              group[2].cast<double>(), py::list(group[3]),
                              group[4].cast<std::int64_t>(),
                              py::reinterpret_borrow<py::object>(group[5]),
                              py::reinterpret_borrow<py::object>(group[6])});
            const GatheredGroup& added = groups.back();
            if (!added.grads.is_none() && py::len(added.grads) != added.params.size())
                throw py::value_error("as many grads as params are needed");
        }
        return groups;
    }

    // The step that parameters take which share their t; 0 if none does.
    static std::int64_t shared_t_of(const std::vector<GatheredGroup>& groups,
                                    const Gatherer& gatherer, const StepOptions& options) {
        const bool any = std::any_of(groups.begin(), groups.end(), [](const GatheredGroup& group) {
            return group.group->rule.shared_t;
        });
        return !any ? 0 : options.t > 0 ? options.t : gatherer.most_steps(groups) + 1;
    }

    // How many of the first tensors share no memory with each other: these can be stepped at once.
    std::size_t sort_out_overlaps(Workspace& work) const {
        const std::vector<GatheredTensor>& tensors = work.gathered.tensors;
        const std::size_t n = work.overlaps.first_in(tensors);
        if (work.overlaps.first_in_itself() < tensors.size())
            refuse_own_overlap(tensors[work.overlaps.first_in_itself()]);
        copy_overlapped_grads(work);
        return n;
    }

    // Gradients that lie in memory that is written are copied first.
    void copy_overlapped_grads(Workspace& work) const {
        for (std::size_t k = 0; k < work.gathered.tensors.size(); ++k) {
            Tensor& step = work.gathered.steps[k];
            if (!work.overlaps.is_written(step.grad)) continue;
            py::object& grad = work.gathered.tensors[k].grad;
            grad = grad.attr("clone")();
            TorchTensor copied;
            if (!reader_.read(grad, work.gathered.arena, copied))
                throw std::runtime_error("a clone of a gradient is no plain tensor");
            step.grad = copied.array;
        }
    }

    static Name name_of(const char* word, const GatheredTensor& one, const std::string& name) {
        return {word, name, !one.group->has_names()};
    }

    [[noreturn]] static void refuse_own_overlap(const GatheredTensor& one) {
        const std::string name = one.group->name_of(one.index);
        throw py::value_error(name_of("param", one, name).text() +
                              " and the tensors of its state share memory with each other, must "
                              "each have their own");
    }

    [[noreturn]] static void refuse_shared(const GatheredTensor& one) {
        const std::string name = one.group->name_of(one.index);
        throw py::value_error(
            name_of("param", one, name).text() +
            " shares memory with a parameter before it, or its state does: they are stepped one "
            "after another, so that no step of both is all or nothing; nonfinite must be "
            "'propagate' and max_grad_norm None");
    }

    void set_hyper_parameters(std::size_t n, std::int64_t shared_t, const StepOptions& options,
                              Workspace& work) const {
        Resolved resolved{};
        for (std::size_t k = 0; k < n; ++k) {
            GatheredTensor& one = work.gathered.tensors[k];
            Tensor& tensor = work.gathered.steps[k];
            const TorchGroup& group = *one.group->group;
            if (group.rule.shared_t) one.t = shared_t;
            // Most tensors of a group are at the same step.
            if (one.group != resolved.group || one.t != resolved.t ||
                tensor.param.format != resolved.format)
                resolved = {one.group, one.t, tensor.param.format,
                            group.rule_of(tensor.param.format)
                                .at(one.t, one.group->lr, one.group->decay, true,
                                    1 / options.grad_scale, tensor.param.format)};
            tensor.hyper = resolved.hyper;
            tensor.stochastic = group.rule.stochastic;
            if (tensor.stochastic)
                tensor.random = RandomStream::of(
                    options.seed, one.t, RandomStream::key_of(one.group->name_of(one.index)));
        }
    }

    Outcome step_first(std::size_t n, std::int64_t shared_t, const StepOptions& options,
                       Workspace& work, TorchMeasured* measured, py::list& stepped) const {
        std::vector<GatheredTensor>& gathered = work.gathered.tensors;
        std::vector<Tensor>& tensors = work.gathered.steps;
        set_hyper_parameters(n, shared_t, options, work);
        if (measured != nullptr && measured->size() > 0)
            for (std::size_t k = 0; k < n; ++k)
                tensors[k].measured = measured->find(gathered[k], tensors[k]);
        work.reports.resize(n);
        Notes notes(*this, gathered, n);
        for (std::size_t k = 0; k < n; ++k) stepped.append(gathered[k].param);
        const Outcome outcome =
            take_step(tensors.data(), n, options.options(), work.reports.data());
        const bool all_were =
            std::all_of(work.reports.begin(), work.reports.end(),
                        [](const TensorReport& report) { return report.stepped; });
        notes.write(work.reports.data());
        if (!all_were) keep_only_stepped(stepped, work.reports);
        if (outcome.fault != Fault::none && options.nonfinite == NonFinite::raise)
            raise(outcome, gathered[outcome.tensor], tensors[outcome.tensor]);
        return outcome;
    }

    // Of a list whose last elements are those of `reports`.
    static void keep_only_stepped(py::list& params, const std::vector<TensorReport>& reports) {
        const std::size_t first = params.size() - reports.size();
        for (std::size_t k = reports.size(); k-- > 0;)
            if (!reports[k].stepped) PySequence_DelItem(params.ptr(), Py_ssize_t(first + k));
    }

    // Counts of steps, and what else is noted of them in the state: made before a step is taken, so
    // that nothing can fail when it has been.
    class Notes {
    public:
        Notes(const TorchSteps& steps, std::vector<GatheredTensor>& tensors, std::size_t n)
            : names_(steps.names_), tensors_(tensors), n_(n) {
            if (!names_.counts_with_tensors)
                for (std::size_t k = 0; k < n; ++k) counts_.emplace_back(tensors[k].t);
            if (!names_.rms_param.is_none()) rms_.resize(n);
        }

        void write(const TensorReport* reports) {
            for (std::size_t k = 0; k < n_; ++k) {
                const GatheredTensor& one = tensors_[k];
                if (!reports[k].stepped) continue;
                if (one.step_dtype == TorchDtype::float32)
                    *reinterpret_cast<float*>(one.step) = float(one.t);
                else if (one.step_dtype == TorchDtype::float64)
                    *reinterpret_cast<double*>(one.step) = double(one.t);
                else
                    replace(one.state, names_.step, counts_[k]);
                if (!rms_.empty() && !std::isnan(reports[k].rms_param))
                    replace(one.state, names_.rms_param, rms_[k].with(reports[k].rms_param));
            }
        }

    private:
        // Of a key that the dict has, which takes no memory.
        static void replace(const py::object& state, const py::object& key,
                            const py::object& value) {
            if (PyDict_SetItem(state.ptr(), key.ptr(), value.ptr()) != 0)
                throw py::error_already_set();
        }

        const TorchNames& names_;
        const std::vector<GatheredTensor>& tensors_;
        std::size_t n_;
        std::vector<py::int_> counts_;
        std::vector<PresetFloat> rms_;
    };

    [[noreturn]] void raise(const Outcome& outcome, const GatheredTensor& one,
                            const Tensor& tensor) const {
        const std::string name = one.group->name_of(one.index);
        const py::object m = tensor.m.data != nullptr ? one.state[names_.moment] : py::none();
        throw_floating_point_error(fault_text(outcome, tensor,
                                              {one.param, name_of("param", one, name)},
                                              {one.grad, name_of("grad", one, name)},
                                              {m, name_of("m", one, name)}, nullptr) +
                                   "; nothing was changed");
    }

    py::object reader_object_, names_object_;
    const TorchReader& reader_;
    const TorchNames& names_;
    std::atomic<Workspace*> spare_{nullptr};
};

TorchGroup make_group(const Rule& rule, const std::string& factored_axes,
                      std::ptrdiff_t min_dim_size_to_factor, const py::object& masters,
                      bool has_moment, bool has_float32_state) {
    const auto axes = factored_axes == "matrix"        ? AxesRule::Kind::matrix
                      : factored_axes == "last_two"    ? AxesRule::Kind::last_two
                      : factored_axes == "two_largest" ? AxesRule::Kind::two_largest
                                                       : AxesRule::Kind::none;
    const std::string kind = masters.is_none() ? "" : masters.cast<std::string>();
    return {rule,
            {axes, min_dim_size_to_factor},
            kind == "float32" ? Masters::float32
            : kind == "split" ? Masters::split
                              : Masters::none,
            has_moment,
            has_float32_state ? Format::float32 : Format::float64};
}

}  // namespace

void bind_torch(py::module_& m) {
    py::class_<TorchReader>(m, "TorchReader", "Finds where torch's tensors lie.")
        .def(py::init<const py::object&, const py::object&, const py::object&, const py::object&,
                      const py::dict&>(),
             py::arg("tensor_type"), py::arg("parameter_type"), py::arg("strided"),
             py::arg("exchange"), py::arg("dtypes"))
        .def_property_readonly("uses_exchange", &TorchReader::uses_exchange);

    py::class_<TorchNames>(m, "TorchNames", "The keys of a tensor's state.")
        .def(py::init([](py::str step, py::str row, py::str col, py::str full, py::str moment,
                         py::str master, py::str low, py::object rms_param, bool keeps_axes,
                         bool counts_with_tensors) {
                 return TorchNames{step,   row, col,       full,       moment,
                                   master, low, rms_param, keeps_axes, counts_with_tensors};
             }),
             py::kw_only(), py::arg("step"), py::arg("row"), py::arg("col"), py::arg("full"),
             py::arg("moment"), py::arg("master"), py::arg("low"), py::arg("rms_param"),
             py::arg("keeps_axes"), py::arg("counts_with_tensors"));

    py::class_<TorchGroup>(m, "TorchGroup",
                           "What the tensors of a param group have in common. Immutable.")
        .def(py::init(&make_group), py::kw_only(), py::arg("rule"), py::arg("factored_axes"),
             py::arg("min_dim_size_to_factor"), py::arg("masters"), py::arg("has_moment"),
             py::arg("has_float32_state"));

    py::class_<StepOptions>(m, "TorchOptions", "How a step is taken. Immutable.")
        .def(py::init([](NonFinite nonfinite, double max_grad_norm, int num_threads,
                         std::uint64_t seed, double grad_scale, std::int64_t t, bool only_looks) {
                 return StepOptions{nonfinite, max_grad_norm, num_threads, seed, grad_scale,
                                    t,         only_looks};
             }),
             py::kw_only(), py::arg("nonfinite"), py::arg("max_grad_norm"), py::arg("num_threads"),
             py::arg("seed"), py::arg("grad_scale"), py::arg("t"), py::arg("only_looks"));

    py::class_<TorchMeasured>(m, "TorchMeasured", "Gradients that wait for the step, measured.")
        .def(py::init<>())
        .def("drop_gone", &TorchMeasured::drop_gone)
        .def("__len__", &TorchMeasured::size)
        .def_property_readonly("n_bytes", &TorchMeasured::n_bytes)
        .def_property_readonly("n_taken", &TorchMeasured::n_taken);

    py::class_<TorchSteps>(m, "TorchSteps", "Steps tensors of torch, found anew each time.")
        .def(py::init<const py::object&, const py::object&>(), py::arg("reader"), py::arg("names"))
        .def("step", &TorchSteps::step, py::arg("groups"), py::arg("state"), py::arg("options"),
             py::arg("measured") = py::none())
        .def("measure", &TorchSteps::measure, py::arg("groups"), py::arg("state"),
             py::arg("options"), py::arg("measured"));
}

}  // namespace adafactor
