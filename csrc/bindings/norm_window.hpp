// The norms of the last steps' gradients, for a rule that leaves out what is far above the usual.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace adafactor {

class NormWindow {
public:
    static constexpr std::size_t kMost = 64;    // norms that are kept
    static constexpr std::size_t kFewest = 16;  // without as many there is no usual norm

    // `factor` times the median. The largest number where there is no usual norm, or it is 0.
    double limit(double factor) const {
        constexpr double kNoLimit = std::numeric_limits<double>::max();
        if (n_ < kFewest) return kNoLimit;
        std::array<double, kMost> sorted = norms_;
        std::sort(sorted.begin(), sorted.begin() + n_);
        const double median = sorted[(n_ - 1) / 2] / 2 + sorted[n_ / 2] / 2;
        return median > 0 ? std::min(factor * median, kNoLimit) : kNoLimit;
    }

    void add(double norm) {
        if (!std::isfinite(norm)) return;
        norms_[next_] = norm;
        next_ = (next_ + 1) % kMost;
        n_ = std::min(n_ + 1, kMost);
    }

    void clear() { n_ = next_ = 0; }

    // The oldest first.
    std::vector<double> norms() const {
        std::vector<double> ordered;
        ordered.reserve(n_);
        for (std::size_t k = 0; k < n_; ++k)
            ordered.push_back(norms_[(next_ + kMost - n_ + k) % kMost]);
        return ordered;
    }

private:
    std::array<double, kMost> norms_{};
    std::size_t n_ = 0, next_ = 0;
};

}  // namespace adafactor
