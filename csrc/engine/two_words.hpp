// A sum of doubles in two words, struct SumWords, that the engine adds up.
#pragma once

#include <cmath>

#include "kernel/kernels.hpp"

namespace adafactor {

struct TwoWords {
    double high = 0, low = 0;

    TwoWords() = default;
    TwoWords(const SumWords& words) : high(words.high), low(words.low) {}
    operator SumWords() const { return {high, low}; }

    // What `high` loses is added up in `low` (Knuth's two-sum).
    void add(double x) {
        const double sum = high + x, part = sum - high;
        low += (high - (sum - part)) + (x - part);
        high = sum;
    }
    void add(const TwoWords& x) {
        add(x.high);
        low += x.low;
    }

    // Rounded once; what is not finite stays what it is.
    double value() const { return std::isfinite(high) ? high + low : high; }
};

inline void add_to(SumWords& sum, const SumWords& more) {
    TwoWords total = sum;
    total.add(more);
    sum = total;
}

}  // namespace adafactor
