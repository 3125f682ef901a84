// A sum of numbers that are not negative as an integer of 128 bits: 84 bits below a bound of the
// largest number, so that no order, cut or number of ranks changes it. At most 2^42 of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "engine/exchanged_sum.hpp"

namespace adafactor {

__extension__ typedef __int128 Int128;

// A maximum that a nan becomes, too.
inline void raise(double& largest, double x) {
    if (x > largest || std::isnan(x)) largest = x;
}

// 2 to this is above x. Neutral for zero; the largest for what is not finite.
inline double fixed_exponent_of(double x) {
    if (!std::isfinite(x)) return std::isnan(x) ? 4097 : 4096;
    return x > 0 ? std::ilogb(x) + 1 : kNeutral;
}

inline bool is_summable(double exponent) { return exponent > kNeutral && exponent < 4096; }

// x below 2^exponent as a multiple of 2^(exponent - 84); what is below that is cut off.
inline Int128 fixed(double x, int exponent) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const auto biased = int(bits >> 52 & 2047);
    const std::uint64_t fraction = bits & ((std::uint64_t(1) << 52) - 1);
    const std::uint64_t digits = biased > 0 ? fraction | std::uint64_t(1) << 52 : fraction;
    const int shift = (biased > 0 ? biased - 1075 : -1074) - (exponent - 84);
    if (bits >> 63) return 0;
    if (shift >= 0) return Int128(digits) << shift;
    return shift > -64 ? Int128(digits >> -shift) : 0;
}

inline void put_fixed(Int128 sum, double* words) {
    constexpr auto low = (Int128(1) << 40) - 1;
    words[0] = double(std::int64_t(sum >> 80));
    words[1] = double(std::int64_t(sum >> 40 & low));
    words[2] = double(std::int64_t(sum & low));
}

// The nearest double to the sum of the ranks' words.
inline double fixed_value(const double* words, double exponent) {
    if (exponent >= 4096) return infinity_or_nan(exponent);
    if (!is_summable(exponent)) return 0;
    const Int128 sum = (Int128(std::int64_t(words[0])) << 80) +
                       (Int128(std::int64_t(words[1])) << 40) + Int128(std::int64_t(words[2]));
    return std::ldexp(double(sum), int(exponent) - 84);
}

}  // namespace adafactor
