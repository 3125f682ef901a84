#include <pybind11/stl.h>

#include "bindings/bindings.hpp"
#include "dispatch/isa.hpp"
#include "engine/geometry.hpp"
#include "engine/threads.hpp"
#include "engine/walk_choice.hpp"

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

// {place: {sweep: (walk, whether it was measured)}}
py::dict walks() {
    constexpr const char* places[] = {"cache", "memory"};
    constexpr const char* sweeps[] = {"measure", "sum_param", "apply"};
    const KnownWalks known = known_walks();
    py::dict of_places;
    for (std::size_t place = 0; place < kPlaces; ++place) {
        py::dict of_sweeps;
        for (std::size_t sweep = 0; sweep < kSweeps; ++sweep) {
            const KnownWalk& walk = known[place][sweep];
            of_sweeps[sweeps[sweep]] = py::make_tuple(name_of(walk.walk), walk.measured);
        }
        of_places[places[place]] = of_sweeps;
    }
    return of_places;
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
    m.def("walks", &walks);
    m.def("forced_walk", &forced_walk);
    m.def("force_walk", &force_walk,
          "Walk rows so in every later step, or with \"auto\" as is fastest; False if there is no "
          "such walk.",
          py::arg("name"));
    m.def("max_threads", &max_threads);
    m.def("set_max_threads", &set_max_threads, py::arg("threads"));
    m.def("set_default_threads", &set_default_threads, py::arg("threads"));
    m.def(
        "task_counts",
        [](std::size_t rows, std::size_t cols) {
            return py::make_tuple(Partition::of(rows, cols, {}).n_groups,
                                  Tiling::of(rows, cols).n_tiles);
        },
        "Tasks that a matrix in C order is cut into: of measure for grad, and of apply.",
        py::arg("rows"), py::arg("cols"));
}

}  // namespace adafactor
