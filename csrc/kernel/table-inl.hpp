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
#include "tail-inl.hpp"
//
#include "doubles-inl.hpp"
#include "halves-inl.hpp"
//
#include "formats-inl.hpp"
#include "random-inl.hpp"
//
#include "runs-inl.hpp"
//
#include "moment-inl.hpp"
#include "sums-inl.hpp"
//
#include "measure-inl.hpp"
#include "resolve-inl.hpp"
//
#include "descent-inl.hpp"
//
#include "apply-inl.hpp"
//
#include "apply_usual-inl.hpp"
#include "rounded-inl.hpp"
#include "unfactored-inl.hpp"
//
#include "transpose-inl.hpp"
//
#include "small-inl.hpp"

}  // namespace

extern const KernelTable ADAFACTOR_TABLE = {
    sum_squares,         sum_squares_in_double,
    measure_rows,        measure_cols,
    sum_u_squares,       apply,
    measure_unfactored,  apply_unfactored,
    measure_small,       apply_small,
    add_groups,          summarize,
    are_within,          sum_over_means,
    fill_factors<float>, fill_factors<double>,
    are_rounded,
};

}  // namespace adafactor
