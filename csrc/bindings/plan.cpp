#include "bindings/plan.hpp"

#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/constructor.hpp"

namespace adafactor {
namespace {

// The fields of a class by keyword: every one by its name, and nothing else. pybind11's own
// keywords end the process where memory for a name runs out.
class Keywords {
public:
    Keywords(const char* of, const py::kwargs& given) : of_(of), given_(given) {}

    template <class T>
    T take(const char* name) {
        taken_.push_back(name);
        PyObject* const found = PyDict_GetItemWithError(given_.ptr(), py::str(name).ptr());
        if (found == nullptr) {
            if (PyErr_Occurred()) throw py::error_already_set();
            throw py::type_error(of_ + " has no " + name + ", must have every field");
        }
        py::detail::make_caster<T> caster;
        if (!caster.load(found, true))
            throw py::type_error(of_ + " has the " + name + " " +
                                 py::repr(found).cast<std::string>() + ", must have another type");
        return py::detail::cast_op<T>(std::move(caster));
    }

    void require_all_taken() const {
        if (given_.size() == taken_.size()) return;
        for (const auto& [name, value] : given_) {
            const auto text = name.cast<std::string>();
            if (std::find(taken_.begin(), taken_.end(), text) == taken_.end())
                throw py::type_error(of_ + " has the argument " + text + ", must have fields of " +
                                     of_ + " only");
        }
    }

private:
    std::string of_;
    const py::kwargs& given_;
    std::vector<const char*> taken_;
};

Rule make_rule(const py::kwargs& given) {
    Keywords fields("Rule", given);
    Rule rule{};
#define ADAFACTOR_TAKE(type, name, meaning) rule.name = fields.take<type>(#name);
    ADAFACTOR_RULE_FIELDS(ADAFACTOR_TAKE)
#undef ADAFACTOR_TAKE
    fields.require_all_taken();
    return rule;
}

Plan make_plan(const py::kwargs& given) {
    Keywords fields("Plan", given);
    Plan plan{};
    plan.rules = fields.take<std::vector<Rule>>("rules");
    plan.lr = fields.take<std::vector<double>>("lr");
    plan.decay = fields.take<std::vector<double>>("decay");
    plan.nonfinite = fields.take<NonFinite>("nonfinite");
    plan.all_or_none = fields.take<bool>("all_or_none");
    plan.max_grad_norm = fields.take<double>("max_grad_norm");
    plan.skip_above = fields.take<double>("skip_above");
    plan.num_threads = fields.take<int>("num_threads");
    plan.carry_param_rms = fields.take<bool>("carry_param_rms");
    plan.seed = fields.take<std::uint64_t>("seed");
    fields.require_all_taken();
    if (plan.lr.size() != plan.rules.size() || plan.decay.size() != plan.rules.size())
        throw py::value_error("as many lr and decay as rules are needed");
    return plan;
}

}  // namespace

void bind_plan(py::module_& m) {
    py::native_enum<NonFinite>(m, "NonFinite", "enum.Enum",
                               "What becomes of a step that would not be finite.")
        .value("raise", NonFinite::raise)
        .value("skip", NonFinite::skip)
        .value("propagate", NonFinite::propagate)
        .finalize();

    py::class_<Rule> rule(m, "Rule", "What the tensors of a group have in common. Immutable.");
    allocate_safely(rule);
    def_constructor<const py::kwargs&>(
        rule, [](const py::kwargs& given) { return std::make_unique<Rule>(make_rule(given)); });
#define ADAFACTOR_SHOW(type, name, meaning) rule.def_readonly(#name, &Rule::name, meaning);
    ADAFACTOR_RULE_FIELDS(ADAFACTOR_SHOW)
#undef ADAFACTOR_SHOW
#define ADAFACTOR_NAME(type, name, meaning) #name,
    rule.attr("fields") = py::cast(std::vector<std::string>{ADAFACTOR_RULE_FIELDS(ADAFACTOR_NAME)});
#undef ADAFACTOR_NAME

    py::class_<Plan> plan(
        m, "Plan",
        "All that a step takes but parameters and gradients. Rules, lr and decay are "
        "the groups'; decay is what is taken from 1; num_threads 0 is the limit of "
        "set_max_threads. Immutable.");
    allocate_safely(plan);
    def_constructor<const py::kwargs&>(
        plan, [](const py::kwargs& given) { return std::make_unique<Plan>(make_plan(given)); });
}

}  // namespace adafactor
