// Between the sweeps: rows + cols numbers, in double.
#pragma once

#include <cstddef>

#include "adafactor.hpp"

namespace adafactor {

// The running means of one axis of a matrix after this step. A line whose squares sum to zero has
// no gradient: it is not `live`, and whatever is done with its zeros, u is zero there.
struct Axis {
    std::size_t size;
    double* running_mean;
    double* sum_sq;
};

// What measure leaves: final running means of both axes and, for the axis crossed by the blocks,
// the sums of grad^2 over the running means of the other.
struct SecondMoment {
    Axis rows, cols;
    bool crossed_rows;
    const double* cross_weighted;
    double mean;  // of the rows' running means
};

double mean_of(const Axis& axis);

// Whether u is finite for every finite gradient: no running mean is infinite or nan, their mean is
// not zero, and none of them is zero while eps is.
bool is_usable(const SecondMoment& moment, double eps);

// Whether sqrt(V) + eps is sqrt(V), to `digits` binary digits, wherever the gradient is not zero.
bool eps_is_lost(const SecondMoment& moment, double eps, int digits);

// Mean of u^2 in the separable form, from one dot product. Not finite if its terms leave the range
// that they were summed in.
double mean_u_squared(const SecondMoment& moment);

double step_size(const HyperParameters& hyper, double mean_u_squared, double mean_param_squared);

// The factors of struct Update (kernel/kernels.hpp), in T. With `literal`, zero lines are not
// treated apart: nan stays nan. Returns false where a float would not do, after which some are not
// written.
template <class T>
bool separable_factors(const SecondMoment& moment, double step, T* row, T* col);
template <class T>
bool direct_factors(const SecondMoment& moment, bool literal, T* row, T* col);

}  // namespace adafactor
