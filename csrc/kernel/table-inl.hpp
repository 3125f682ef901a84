// Includes the loops inside the namespace of one instruction set and fills its table. Each
// kernel/<set>.cpp names the set and includes this. Everything is in an anonymous namespace and no
// header here defines a function that another set could share: the linker might keep the copy with
// the widest instructions for everyone.
#if defined(__SSE2__)
#include <immintrin.h>  // functions that are always inlined
#endif
#if defined(__AVX512F__) && !defined(__clang__)
// GCC's own header leaves a vector undefined on purpose, and GCC then warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels.hpp"

namespace adafactor {
namespace {

#include "lanes-inl.hpp"
//
#include "tail-inl.hpp"
//
#include "doubles-inl.hpp"
//
#include "half_formats-inl.hpp"
//
#include "measure-inl.hpp"
//
#include "apply-inl.hpp"
#include "resolve-inl.hpp"
#include "unfactored-inl.hpp"
//
#include "small-inl.hpp"
//
#include "random-inl.hpp"
//
#include "apply_stored-inl.hpp"
#include "halves-inl.hpp"

template <class P, class G>
constexpr Kernels<P, G> kernels_of = {
    sum_squares<P>,         measure_rows<G>,     measure_cols<G>,
    sum_u_squares<G>,       apply<P, G>,         measure_unfactored<P, G>,
    apply_unfactored<P, G>, measure_small<P, G>, apply_small<P, G>,
};

template <class Format>
constexpr HalfKernels half_kernels_of = {
    widen<Format>,
    narrow<Format>,
    sum_squares_of_halves<Format>,
    measure_rows_of_halves<Format>,
};

}  // namespace

extern const KernelTable ADAFACTOR_TABLE = {
    kernels_of<float, float>,
    kernels_of<float, double>,
    kernels_of<double, float>,
    kernels_of<double, double>,
    half_kernels_of<Bfloat16>,
    half_kernels_of<Float16>,
    apply_stored,
    join,
    split,
    add_groups,
    range_of,
    sum_over_means,
    fill_factors<float>,
    fill_factors<double>,
};

}  // namespace adafactor
