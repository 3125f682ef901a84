#include "bindings/plan.hpp"

#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <set>
#include <string>
#include <utility>

#include "bindings/bindings.hpp"

namespace adafactor {
namespace {

// A Rule of keyword arguments: every field by its name, and nothing else.
class RuleArguments {
public:
    explicit RuleArguments(const py::kwargs& given) : given_(given) {}

    template <class T>
    T take(const char* name) {
        taken_.insert(name);
        if (!given_.contains(name))
            throw py::type_error("Rule has no " + std::string(name) + ", must have every field");
        const py::object value = given_[name];
        py::detail::make_caster<T> caster;
        if (!caster.load(value, true))
            throw py::type_error("Rule has the " + std::string(name) + " " +
                                 py::repr(value).cast<std::string>() + ", must have another type");
        return py::detail::cast_op<T>(caster);
    }

    void require_all_taken() const {
        for (const auto& [name, value] : given_)
            if (taken_.count(name.cast<std::string>()) == 0)
                throw py::type_error("Rule has the argument " + name.cast<std::string>() +
                                     ", must have fields of Rule only");
    }

private:
    const py::kwargs& given_;
    std::set<std::string> taken_;
};

Rule make_rule(const py::kwargs& given) {
    RuleArguments arguments(given);
    Rule rule{};
#define ADAFACTOR_TAKE(type, name, meaning) rule.name = arguments.take<type>(#name);
    ADAFACTOR_RULE_FIELDS(ADAFACTOR_TAKE)
#undef ADAFACTOR_TAKE
    arguments.require_all_taken();
    return rule;
}

Plan make_plan(std::vector<Rule> rules, std::vector<double> lr, std::vector<double> decay,
               NonFinite nonfinite, bool all_or_none, double max_grad_norm, double skip_above,
               int num_threads, bool carry_param_rms, std::uint64_t seed) {
    if (lr.size() != rules.size() || decay.size() != rules.size())
        throw py::value_error("as many lr and decay as rules are needed");
    return {std::move(rules), std::move(lr), std::move(decay), nonfinite,       all_or_none,
            max_grad_norm,    skip_above,    num_threads,      carry_param_rms, seed};
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
    rule.def(py::init(&make_rule));
#define ADAFACTOR_SHOW(type, name, meaning) rule.def_readonly(#name, &Rule::name, meaning);
    ADAFACTOR_RULE_FIELDS(ADAFACTOR_SHOW)
#undef ADAFACTOR_SHOW
#define ADAFACTOR_NAME(type, name, meaning) #name,
    rule.attr("fields") = py::cast(std::vector<std::string>{ADAFACTOR_RULE_FIELDS(ADAFACTOR_NAME)});
#undef ADAFACTOR_NAME

    py::class_<Plan>(m, "Plan",
                     "All that a step takes but parameters and gradients. Rules, lr and decay are "
                     "the groups'; decay is what is taken from 1; num_threads 0 is the limit of "
                     "set_max_threads. Immutable.")
        .def(py::init(&make_plan), py::kw_only(), py::arg("rules"), py::arg("lr"), py::arg("decay"),
             py::arg("nonfinite"), py::arg("all_or_none"), py::arg("max_grad_norm"),
             py::arg("skip_above"), py::arg("num_threads"), py::arg("carry_param_rms"),
             py::arg("seed"));
}

}  // namespace adafactor
