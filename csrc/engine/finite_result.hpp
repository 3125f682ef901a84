// Whether a step begins with a sound state and leaves nothing but finite numbers: nearly always by
// bounds, which cost nothing.
#pragma once

#include <cstddef>
#include <limits>

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// What a tensor's steps so far tell of its numbers, so that the next one need not read them for it.
//
// It is wrong if somebody else has written to them since. So every step looks at a sixteenth of
// them again, in rotation, and at all where nothing is known.
struct KnownNumbers {
    static constexpr std::size_t kRotation = 16;  // steps in which every number is looked at
    static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

    double param = kUnknown;  // no absolute value is larger; known only where it is needed
    double m = kUnknown;      // likewise
    bool means = false;       // exp_row and exp_col, or v, are as steps leave them
    std::size_t turn = 0;     // of the rotation
    bool finite = false;      // param, copy, m and means are, after a step that would propagate

    void forget() { *this = {kUnknown, kUnknown, false, turn}; }
};

inline constexpr double kSumMargin = 1.001;  // of sums of squares, for how they are rounded

// Of which a fault names an element; null if it names none.
inline const Array* array_at_fault(const Tensor& tensor, Fault fault) {
    switch (fault) {
        case Fault::grad:
            return &tensor.grad;
        case Fault::param:
        case Fault::result:
            return &tensor.param;
        case Fault::first_moment:
            return &tensor.m;
        default:
            return nullptr;
    }
}

// The part of n things that is looked at in a turn of the rotation.
struct TurnOf {
    std::size_t begin, end;

    TurnOf(std::size_t n, std::size_t turn)
        : begin(n * turn / KnownNumbers::kRotation),
          end(n * (turn + 1) / KnownNumbers::kRotation) {}
    bool is_empty() const { return begin == end; }
    std::size_t size() const { return end - begin; }
};

// Bounds of the absolute values that a step leaves, by those of before. No element's square exceeds
// a sum of squares.
class ResultBounds {
public:
    // `largest_u` is that of u as Descent's weight takes it. Descents are those of all matrices.
    ResultBounds(const Tensor& tensor, const Descent* descents, std::size_t n, double largest_u);

    double m_after(double m) const { return (beta1_ * m + x_) * m_slack_; }
    double param_after(double param, double m) const {
        return (param_factor_ * param + move(m)) * param_slack_;
    }

    // Whether everything that is finite now is so after the step.
    bool are_finite(double param, double m) const;

private:
    // What is taken from param beside its decay.
    double move(double m) const { return has_m_ ? rate_ * m_after(m) : x_; }

    double x_ = 0, beta1_ = 0, rate_ = 0, param_factor_ = 1;
    double param_slack_ = 1, m_slack_ = 1;  // for what is rounded, up at random too
    double largest_param_ = 0, largest_m_ = 0;
    double least_move_ = -1;  // with which every param stays finite; none has, if there are copies
    bool has_m_ = false;
};

// Whether a param of this tensor stays finite by the smallness of its step alone: it is rounded to
// the nearest, and nothing narrower is made of it.
bool is_bounded_by_move(const Tensor& tensor);

// Which number of a block, row by row, is the first that is not finite, or -1.
std::ptrdiff_t first_infinite(const Block& block);

// The largest running mean that squares of this format's numbers can have left behind, with room
// for any scale of a loss; of float64, nearly what its range is.
inline double largest_second_moment(Format grad) { return grad == Format::float64 ? 1e307 : 1e100; }

}  // namespace adafactor
