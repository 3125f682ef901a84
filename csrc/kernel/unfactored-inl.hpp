// Both sweeps of a tensor that keeps its full second moment, over runs of consecutive elements.
// The new v is computed twice instead of stored early: measure writes nothing. v is in double.
// Where param and grad are float32 and v is in float's range, what follows v is in float: u has no
// more digits, and a root and a quotient in double take four times as long.

// Doubles or, beside them, as many floats.
template <class Acc>
using Group = Lanes<Acc, kLanes<double>>;

constexpr std::size_t kGroup = kLanes<double>;

// v between these has a root, and u as a rule, that float holds.
constexpr double kSmallestNarrowV = 1e-36, kLargestNarrowV = 1e36;
constexpr double kSmallestNarrowUSq = 1e-30, kLargestNarrowEps = 1e30;

ADAFACTOR_INLINE Doubles new_v(const Doubles& g, const Doubles& v, const Unfactored& moment) {
    return broadcast(moment.beta2) * v +
           broadcast(1 - moment.beta2) * (g * g + broadcast(moment.eps));
}

// u = g / (sqrt(v) + eps)
template <class Acc>
ADAFACTOR_INLINE Group<Acc> u_of(const Group<Acc>& g, const Doubles& v, double eps) {
    const Group<Acc> root = square_root(converted<Acc>(v));
    return g / (root + broadcast<Acc, kGroup>(Acc(eps)));
}

template <class Acc, class G>
ADAFACTOR_INLINE UnfactoredSums measure_unfactored_in(const G* grad, const double* v, std::size_t n,
                                                      const Unfactored& moment) {
    Doubles grad_sq = broadcast(0.0);
    Doubles smallest = broadcast(kLargestNarrowV), largest = broadcast(kSmallestNarrowV);
    // Two chains of sums, each of at most 64 floats a lane.
    Group<Acc> u_sq[2] = {broadcast<Acc, kGroup>(0), broadcast<Acc, kGroup>(0)};
    const auto add = [&](const Group<Acc>& g, const Doubles& now, Group<Acc>& sum) {
        const Group<Acc> u = u_of<Acc>(g, now, moment.eps);
        grad_sq = grad_sq + converted<double>(g) * converted<double>(g);
        sum = sum + u * u;
        smallest = smaller(now, smallest);
        largest = larger(now, largest);
    };
    std::size_t k = 0;
    for (; k + 2 * kGroup <= n; k += 2 * kGroup) {
        for (std::size_t c = 0; c < 2; ++c) {
            const Group<Acc> g = load<Acc, kGroup>(grad + k + c * kGroup);
            const Doubles old = load<double>(v + k + c * kGroup);
            add(g, new_v(converted<double>(g), old, moment), u_sq[c]);
        }
    }
    for (; k < n; k += kGroup) {
        // Past the end v is 1, so that u is 0 there for every eps.
        const std::size_t rest = n - k < kGroup ? n - k : kGroup;
        const Doubles g = load_first<double>(grad + k, rest);
        alignas(64) double padded[kGroup];
        store(padded, new_v(g, load_first<double>(v + k, rest), moment));
        for (std::size_t l = rest; l < kGroup; ++l) padded[l] = 1;
        add(converted<Acc>(g), load<double>(padded), u_sq[0]);
    }
    const double u_sq_sum = double(sum_lanes(u_sq[0])) + double(sum_lanes(u_sq[1]));
    const bool fits_float = moment.eps <= kLargestNarrowEps &&
                            smallest_lane(smallest) >= kSmallestNarrowV &&
                            largest_lane(largest) <= kLargestNarrowV &&
                            u_sq_sum >= kSmallestNarrowUSq && u_sq_sum <= kLargestNarrowV;
    return {sum_lanes(grad_sq), u_sq_sum, !fits_float};
}

template <class P, class G>
UnfactoredSums measure_unfactored(const G* grad, const double* v, std::size_t n,
                                  const Unfactored& moment) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        const UnfactoredSums sums = measure_unfactored_in<float>(grad, v, n, moment);
        if (!sums.wide) return sums;
    }
    UnfactoredSums sums = measure_unfactored_in<double>(grad, v, n, moment);
    sums.wide = true;
    return sums;
}

template <class Acc, class P, class G>
ADAFACTOR_INLINE void apply_unfactored_in(P* param, const G* grad, double* v, std::size_t n,
                                          const Unfactored& moment, double step) {
    const Group<Acc> s = broadcast<Acc, kGroup>(Acc(step));
    std::size_t k = 0;
    for (; k + kGroup <= n; k += kGroup) {
        const Group<Acc> g = load<Acc, kGroup>(grad + k);
        const Doubles now = new_v(converted<double>(g), load<double>(v + k), moment);
        const Group<Acc> u = u_of<Acc>(g, now, moment.eps);
        store(param + k, load<Acc, kGroup>(param + k) - s * u);
        store(v + k, now);
    }
    if (const std::size_t rest = n - k; rest > 0) {
        const Doubles g = load_first<double>(grad + k, rest);
        const Doubles now = new_v(g, load_first<double>(v + k, rest), moment);
        const Group<Acc> u = u_of<Acc>(converted<Acc>(g), now, moment.eps);
        store_first(param + k, load_first<Acc, kGroup>(param + k, rest) - s * u, rest);
        store_first(v + k, now, rest);
    }
}

template <class P, class G>
void apply_unfactored(P* param, const G* grad, double* v, std::size_t n, const Unfactored& moment,
                      double step, bool wide) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        const bool step_fits_float = step == 0 || (step >= 1e-30 && step <= 1e30);
        if (!wide && step_fits_float)
            return apply_unfactored_in<float>(param, grad, v, n, moment, step);
    }
    apply_unfactored_in<double>(param, grad, v, n, moment, step);
}
