#include <pybind11/stl.h>

#include "bindings/bindings.hpp"
#include "dispatch/isa.hpp"
#include "engine/threads.hpp"

#define ADAFACTOR_TEXT_OF(x) #x
#define ADAFACTOR_TEXT(x) ADAFACTOR_TEXT_OF(x)

namespace adafactor {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler[] = {"clang", __clang_version__};
#else
constexpr const char* kCompiler[] = {"gcc", __VERSION__};
#endif

// The version of the OpenMP specification that the compiler supports, as a date; 0 without OpenMP.
constexpr long kOpenmp =
#ifdef _OPENMP
    _OPENMP;
#else
    0;
#endif

// Wakes the OpenMP runtime, which then reads its waiting policy from the environment.
void start_runtime() {
#ifdef _OPENMP
    omp_get_max_threads();
#endif
}

}  // namespace

void bind_config(py::module_& m) {
    start_runtime();
    m.attr("version") = ADAFACTOR_TEXT(ADAFACTOR_VERSION);
    m.attr("compiler") = py::make_tuple(kCompiler[0], kCompiler[1]);
    m.attr("openmp") = kOpenmp;
    m.def("built_isas", &built_isas);
    m.def("available_isas", &available_isas);
    m.def("running_isa", &running_isa);
    m.def("set_isa", &set_isa, "Switch every later step; False if there is no such set here.",
          py::arg("name"));
    m.def("max_threads", &max_threads);
    m.def("set_max_threads", &set_max_threads, py::arg("threads"));
}

}  // namespace adafactor
