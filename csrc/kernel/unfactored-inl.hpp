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
// Above this, there is no hope that eps is lost beside every root of v.
constexpr double kLargestLostEps = 1e-20;

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

// u^2, without the root where eps is lost beside it.
template <class Acc, bool eps_lost>
ADAFACTOR_INLINE Group<Acc> u_squared(const Group<Acc>& g, const Doubles& v, double eps) {
    if constexpr (eps_lost) return g / converted<Acc>(v) * g;
    const Group<Acc> u = u_of<Acc>(g, v, eps);
    return u * u;
}

struct RunSums {
    double grad_sq, u_sq, v;
    double smallest_live;  // v where there is a gradient
};

template <class Acc, bool eps_lost, class G>
ADAFACTOR_INLINE RunSums sum_run(const G* grad, const double* v, std::size_t n,
                                 const Unfactored& moment) {
    Doubles grad_sq = broadcast(0.0), v_sum = broadcast(0.0);
    const Doubles infinity = broadcast(double(__builtin_inf()));
    Doubles smallest_live = infinity;
    // Two chains of sums, each of at most 64 floats a lane.
    Group<Acc> u_sq[2] = {broadcast<Acc, kGroup>(0), broadcast<Acc, kGroup>(0)};
    const auto add = [&](const Group<Acc>& g, const Doubles& now, Group<Acc>& sum) {
        const Doubles g_sq = converted<double>(g) * converted<double>(g);
        grad_sq = grad_sq + g_sq;
        sum = sum + u_squared<Acc, eps_lost>(g, now, moment.eps);
        v_sum = v_sum + now;
        smallest_live = smaller(where_zero(g_sq, infinity, now), smallest_live);
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
        const Doubles now = new_v(g, load_first<double>(v + k, rest), moment);
        add(converted<Acc>(g), padded_with(now, rest, 1), u_sq[0]);
    }
    return {sum_lanes(grad_sq), double(sum_lanes(u_sq[0])) + double(sum_lanes(u_sq[1])),
            sum_lanes(v_sum), smallest_lane(smallest_live)};
}

template <class Acc, class G>
ADAFACTOR_INLINE RunSums sum_run_exactly(const G* grad, const double* v, std::size_t n,
                                         const Unfactored& moment) {
    if (moment.eps <= kLargestLostEps) {
        const RunSums sums = sum_run<Acc, true>(grad, v, n, moment);
        const double least = moment.eps * (sizeof(Acc) == 4 ? 0x1p27 : 0x1p54);
        const bool lost = sums.smallest_live > 0 && sums.smallest_live >= least * least;
        if (lost && __builtin_isfinite(sums.u_sq)) return sums;
    }
    return sum_run<Acc, false>(grad, v, n, moment);
}

template <class P, class G>
UnfactoredSums measure_unfactored(const G* grad, const double* v, std::size_t n,
                                  const Unfactored& moment) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        const RunSums sums = sum_run_exactly<float>(grad, v, n, moment);
        const bool fits_float = moment.eps <= kLargestNarrowEps &&
                                sums.smallest_live >= kSmallestNarrowV &&
                                sums.v <= kLargestNarrowV && sums.u_sq >= kSmallestNarrowUSq &&
                                sums.u_sq <= kLargestNarrowV;
        if (fits_float) return {sums.grad_sq, sums.u_sq, false};
    }
    const RunSums sums = sum_run_exactly<double>(grad, v, n, moment);
    return {sums.grad_sq, sums.u_sq, true};
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
