// Both sweeps of a tensor that keeps its full second moment, over runs of consecutive elements.
// The new v is computed twice instead of stored early: measure writes nothing. v is in double.
// Where param and grad are float32 and v is in float's range, what follows v is in float: u has no
// more digits, and a root and a quotient in double take four times as long.

// Doubles or, beside them, as many floats.
template <class Acc>
using Group = Lanes<Acc, kLanes<double>>;

constexpr std::size_t kGroup = kLanes<double>;

// V between these has a root, and u as a rule, that float holds.
constexpr double kSmallestNarrowV = 1e-36, kLargestNarrowV = 1e36;
constexpr double kSmallestNarrowUSq = 1e-30, kLargestNarrowEps = 1e30;
// Above this, there is no hope that eps is lost beside every root of V.
constexpr double kLargestLostEps = 1e-20;

ADAFACTOR_INLINE Doubles new_v(const Doubles& g, const Doubles& v, const Moment& moment) {
    return broadcast(moment.beta2) * v +
           broadcast(1 - moment.beta2) * (g * g * broadcast(moment.scale) + broadcast(moment.eps));
}

// V is v + eps_means.
template <class Acc>
ADAFACTOR_INLINE Group<Acc> u_of(const Group<Acc>& g, const Doubles& V, const Moment& moment) {
    const Group<Acc> root = square_root(converted<Acc>(V));
    return g / at_least(broadcast<Acc, kGroup>(Acc(moment.root_floor)),
                        root + broadcast<Acc, kGroup>(Acc(moment.eps_root)));
}

// u^2, without the root where nothing that is added to it matters.
template <class Acc, bool eps_lost>
ADAFACTOR_INLINE Group<Acc> u_squared(const Group<Acc>& g, const Doubles& V, const Moment& moment) {
    if constexpr (eps_lost) return g / converted<Acc>(V) * g;
    const Group<Acc> u = u_of<Acc>(g, V, moment);
    return u * u;
}

struct RunSums {
    double grad_sq, u_sq, V;
    double smallest_live;  // V where there is a gradient
};

template <class Acc, bool eps_lost, class G>
ADAFACTOR_INLINE RunSums sum_run(const G* grad, const double* v, std::size_t n,
                                 const Moment& moment) {
    Doubles grad_sq = broadcast(0.0), v_sum = broadcast(0.0);
    const Doubles infinity = broadcast(double(__builtin_inf()));
    const Doubles eps_means = broadcast(moment.eps_means);
    Doubles smallest_live = infinity;
    // Two chains of sums, each of at most 64 floats a lane.
    Group<Acc> u_sq[2] = {broadcast<Acc, kGroup>(0), broadcast<Acc, kGroup>(0)};
    const auto add = [&](const Group<Acc>& g, const Doubles& now, Group<Acc>& sum) {
        const Doubles g_sq = converted<double>(g) * converted<double>(g);
        grad_sq = grad_sq + g_sq;
        sum = sum + u_squared<Acc, eps_lost>(g, now, moment);
        v_sum = v_sum + now;
        smallest_live = smaller(where_zero(g_sq, infinity, now), smallest_live);
    };
    std::size_t k = 0;
    for (; k + 2 * kGroup <= n; k += 2 * kGroup) {
        for (std::size_t c = 0; c < 2; ++c) {
            const Group<Acc> g = load<Acc, kGroup>(grad + k + c * kGroup);
            const Doubles old = load<double>(v + k + c * kGroup);
            add(g, new_v(converted<double>(g), old, moment) + eps_means, u_sq[c]);
        }
    }
    for (; k < n; k += kGroup) {
        // Past the end V is 1, so that u is 0 there whatever is added to its root.
        const std::size_t rest = n - k < kGroup ? n - k : kGroup;
        const Doubles g = load_first<double>(grad + k, rest);
        const Doubles now = new_v(g, load_first<double>(v + k, rest), moment) + eps_means;
        add(converted<Acc>(g), padded_with(now, rest, 1), u_sq[0]);
    }
    return {sum_lanes(grad_sq), double(sum_lanes(u_sq[0])) + double(sum_lanes(u_sq[1])),
            sum_lanes(v_sum), smallest_lane(smallest_live)};
}

template <class Acc, class G>
ADAFACTOR_INLINE RunSums sum_run_exactly(const G* grad, const double* v, std::size_t n,
                                         const Moment& moment) {
    if (moment.eps_root <= kLargestLostEps) {
        const RunSums sums = sum_run<Acc, true>(grad, v, n, moment);
        const double lost_beside = moment.eps_root * (sizeof(Acc) == 4 ? 0x1p27 : 0x1p54);
        const double least = lost_beside < moment.root_floor ? moment.root_floor : lost_beside;
        const bool lost = sums.smallest_live > 0 && sums.smallest_live >= least * least;
        if (lost && __builtin_isfinite(sums.u_sq)) return sums;
    }
    return sum_run<Acc, false>(grad, v, n, moment);
}

template <class P, class G>
UnfactoredSums measure_unfactored(const G* grad, const double* v, std::size_t n,
                                  const Moment& moment) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        const RunSums sums = sum_run_exactly<float>(grad, v, n, moment);
        const bool fits_float =
            moment.eps_root <= kLargestNarrowEps && moment.root_floor <= kLargestNarrowEps &&
            sums.smallest_live >= kSmallestNarrowV && sums.V <= kLargestNarrowV &&
            sums.u_sq >= kSmallestNarrowUSq && sums.u_sq <= kLargestNarrowV;
        if (fits_float) return {sums.grad_sq, sums.u_sq, false};
    }
    const RunSums sums = sum_run_exactly<double>(grad, v, n, moment);
    return {sums.grad_sq, sums.u_sq, true};
}

template <Moves moves, class Acc, class P, class G>
ADAFACTOR_INLINE void apply_unfactored_in(P* param, P* m, const G* grad, double* v, std::size_t n,
                                          const Moment& moment, const Move& move) {
    const Group<Acc> weight = broadcast<Acc, kGroup>(Acc(move.weight));
    const Mover<moves, Acc, kGroup> moved(move);
    const Doubles eps_means = broadcast(moment.eps_means);
    // load_group(from, Acc()), store_group(to, x): of a whole group, or of its first lanes.
    const auto apply_group = [&](std::size_t k, const auto& load_group,
                                 const auto& store_group) __attribute__((always_inline)) {
        const Group<Acc> g = load_group(grad + k, Acc());
        const Doubles now = new_v(converted<double>(g), load_group(v + k, double()), moment);
        const Group<Acc> x = weight * u_of<Acc>(g, now + eps_means, moment);
        Group<Acc> first_moment;
        if constexpr (moves == Moves::with_momentum) first_moment = load_group(m + k, Acc());
        store_group(param + k, moved(load_group(param + k, Acc()), x, first_moment));
        if constexpr (moves == Moves::with_momentum) store_group(m + k, first_moment);
        store_group(v + k, now);
    };
    std::size_t k = 0;
    for (; k + kGroup <= n; k += kGroup)
        apply_group(
            k,
            [](const auto* from, auto acc)
                __attribute__((always_inline)) { return load<decltype(acc), kGroup>(from); },
            [](auto* to, const auto& x) __attribute__((always_inline)) { store(to, x); });
    if (const std::size_t rest = n - k; rest > 0)
        apply_group(
            k,
            [rest](const auto* from, auto acc) __attribute__((always_inline)) {
                return load_first<decltype(acc), kGroup>(from, rest);
            },
            [rest](auto* to, const auto& x)
                __attribute__((always_inline)) { store_first(to, x, rest); });
}

template <class Acc, class P, class G>
ADAFACTOR_INLINE void apply_unfactored_as(P* param, P* m, const G* grad, double* v, std::size_t n,
                                          const Moment& moment, const Move& move) {
    switch (moves_of(move, m)) {
        case Moves::plain:
            return apply_unfactored_in<Moves::plain, Acc>(param, m, grad, v, n, moment, move);
        case Moves::decayed:
            return apply_unfactored_in<Moves::decayed, Acc>(param, m, grad, v, n, moment, move);
        case Moves::with_momentum:
            return apply_unfactored_in<Moves::with_momentum, Acc>(param, m, grad, v, n, moment,
                                                                  move);
    }
}

ADAFACTOR_INLINE bool fits_float(double x) {
    return x == 0 || (x >= 1e-30 && x <= 1e30) || (x <= -1e-30 && x >= -1e30);
}

template <class P, class G>
void apply_unfactored(P* param, P* m, const G* grad, double* v, std::size_t n, const Moment& moment,
                      const Move& move, bool wide) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        if (!wide && fits_float(move.weight) && fits_float(move.rate))
            return apply_unfactored_as<float>(param, m, grad, v, n, moment, move);
    }
    apply_unfactored_as<double>(param, m, grad, v, n, moment, move);
}
