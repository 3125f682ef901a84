// A sum of doubles in two words: so much closer than one that neither its order nor its cuts show
// after rounding. No function here that is not inline and of no instruction set's own.
#pragma once

#include <cmath>

namespace adafactor {

struct TwoWords {
    double high = 0, low = 0;

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

}  // namespace adafactor
