// A sum over ranks whose result no order of additions, no length of a message and no number of
// ranks changes: integers of 40 bits below the largest exponent that any rank has.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "engine/two_words.hpp"

namespace adafactor {

inline constexpr std::size_t kWords = 3;  // of an exchanged sum; 2^13 ranks add up exactly
inline constexpr double kNeutral = std::numeric_limits<double>::lowest();  // of a maximum

// A number for a maximum over ranks, which carries no nan. What is one makes a step as faulty as an
// infinity does.
inline double for_maximum(double x) {
    return std::isnan(x) ? std::numeric_limits<double>::infinity() : x;
}

// What ranks take the maximum of before they add. A sum that is not finite has the largest, and one
// that is nan a larger still.
inline double exponent_of(const TwoWords& sum) {
    if (!std::isfinite(sum.high)) return std::isnan(sum.high) ? 4097 : 4096;
    return sum.high == 0 ? kNeutral : std::ilogb(sum.high) + 2;
}

// The words of a rank's sum, `exponent` being the maximum: whole numbers, to be added to others'.
inline void put_words(TwoWords sum, double exponent, double* words) {
    for (std::size_t k = 0; k < kWords; ++k) words[k] = 0;
    if (!(exponent > kNeutral) || exponent >= 4096) return;
    for (double rest : {sum.high, sum.low})
        for (std::size_t k = 0; k < kWords; ++k) {
            const int unit = int(exponent) - 40 * int(k + 1);
            const double word = std::trunc(std::ldexp(rest, -unit));
            words[k] += word;
            rest -= std::ldexp(word, unit);
        }
}

// What sums of squares that are not finite make together.
inline double infinity_or_nan(double exponent) {
    return exponent > 4096 ? std::numeric_limits<double>::quiet_NaN()
                           : std::numeric_limits<double>::infinity();
}

inline TwoWords sum_of_words(const double* words, double exponent) {
    TwoWords sum;
    if (exponent >= 4096) sum.high = infinity_or_nan(exponent);
    if (!(exponent > kNeutral) || exponent >= 4096) return sum;
    for (std::size_t k = 0; k < kWords; ++k)
        sum.add(std::ldexp(words[k], int(exponent) - 40 * int(k + 1)));
    const double high = sum.high + sum.low;  // the nearest, so that value() is the same
    if (std::isfinite(high)) sum.low -= high - sum.high, sum.high = high;
    return sum;
}

}  // namespace adafactor
