// Both sweeps of a tensor that keeps its full second moment, over runs of consecutive elements.
// The new v is computed twice instead of stored early: measure writes nothing. It is computed in
// double, also where v is kept in float32, and V is made of that: only what is stored is rounded.
// Where neither param nor grad is float64 and v is in float's range, what follows v is in float: u
// has no more digits, and a root and a quotient in double take four times as long.

// V is in groups of doubles; what follows it, in float, is for two groups at once, since a root or
// a quotient of sixteen floats takes no longer than one of eight.
constexpr std::size_t kGroup = kLanes<double>;
constexpr std::integral_constant<std::size_t, kGroup> kOneGroup;

// V between these has a root, and u as a rule, that float holds.
constexpr double kSmallestNarrowV = 1e-36, kLargestNarrowV = 1e36;
constexpr double kSmallestNarrowUSq = 1e-30, kLargestNarrowEps = 1e30;
// Above this, there is no hope that eps is lost beside every root of V.
constexpr double kLargestLostEps = 1e-20;

ADAFACTOR_INLINE Doubles new_v(const Doubles& g, const Doubles& v, const Moment& moment) {
    return RunningMean<Doubles>(moment)(v, g * g * broadcast(moment.scale));
}

// Groups of doubles as one of Acc.
template <class Acc, std::size_t n_groups>
ADAFACTOR_INLINE Lanes<Acc, n_groups * kGroup> in_one(const Doubles (&x)[n_groups]) {
    if constexpr (n_groups == 1)
        return converted<Acc>(x[0]);
    else
        return joined(converted<Acc>(x[0]), converted<Acc>(x[1]));
}

// V is v + eps_means.
template <class Acc, std::size_t n>
ADAFACTOR_INLINE Lanes<Acc, n> u_of(const Lanes<Acc, n>& g, const Lanes<Acc, n>& V,
                                    const Moment& moment) {
    return g / at_least(broadcast<Acc, n>(Acc(moment.root_floor)),
                        square_root(V) + broadcast<Acc, n>(Acc(moment.eps_root)));
}

// u^2, without the root where nothing that is added to it matters.
template <bool eps_lost, class Acc, std::size_t n>
ADAFACTOR_INLINE Lanes<Acc, n> u_squared(const Lanes<Acc, n>& g, const Lanes<Acc, n>& V,
                                         const Moment& moment) {
    if constexpr (eps_lost) return g / V * g;
    const Lanes<Acc, n> u = u_of(g, V, moment);
    return u * u;
}

struct RunSums {
    double grad_sq, u_sq, V;
    double smallest_live;  // V where there is a gradient
};

template <class Acc, bool eps_lost, class V>
RunSums sum_run(const Acc* grad, const V* v, std::size_t n, const Moment& moment) {
    Doubles grad_sq = broadcast(0.0), v_sum = broadcast(0.0);
    const Doubles infinity = broadcast(double(__builtin_inf()));
    const Doubles eps_means = broadcast(moment.eps_means);
    Doubles smallest_live = infinity;
    const auto new_V = [&](const Doubles& g, const Doubles& old) __attribute__((always_inline)) {
        return new_v(g, old, moment) + eps_means;
    };
    const auto add = [&](const Doubles& g, const Doubles& now) __attribute__((always_inline)) {
        const Doubles g_sq = g * g;
        grad_sq = grad_sq + g_sq;
        v_sum = v_sum + now;
        smallest_live = smaller(where_zero(g_sq, infinity, now), smallest_live);
    };
    // Of u^2 each lane of two groups has a chain of its own, of at most 64 terms.
    constexpr std::size_t pair = 2 * kGroup, n_together = kLanes<Acc> / kGroup;
    Lanes<Acc> u_sq_of_pairs[2 / n_together];
    for (auto& sums : u_sq_of_pairs) sums = broadcast<Acc>(0);
    std::size_t k = 0;
    for (; k + pair <= n; k += pair) {
        std::size_t j = k;
        for (auto& sums : u_sq_of_pairs) {
            Doubles now[n_together];
            const Lanes<Acc> g_together = load<Acc>(grad + j);
            for (std::size_t c = 0; c < n_together; ++c, j += kGroup) {
                const Doubles g = load<double>(grad + j);
                now[c] = new_V(g, load<double>(v + j));
                add(g, now[c]);
            }
            sums = sums + u_squared<eps_lost>(g_together, in_one<Acc>(now), moment);
        }
    }
    Acc chain[pair];
    std::size_t lane = 0;
    for (const auto& sums : u_sq_of_pairs) {
        store(chain + lane, sums);
        lane += kLanes<Acc>;
    }
    Lanes<Acc, kGroup> u_sq = load<Acc, kGroup>(chain);
    for (; k < n; k += kGroup) {
        // Past the end V is 1, so that u is 0 there whatever is added to its root.
        const std::size_t rest = n - k < kGroup ? n - k : kGroup;
        const Doubles g = load_first<double>(grad + k, rest);
        const Doubles now[] = {padded_with(new_V(g, load_first<double>(v + k, rest)), rest, 1)};
        add(g, now[0]);
        u_sq = u_sq + u_squared<eps_lost>(converted<Acc>(g), in_one<Acc>(now), moment);
    }
    const double u_sq_of_all =
        double(sum_lanes(u_sq)) + double(sum_lanes(load<Acc, kGroup>(chain + kGroup)));
    return {sum_lanes(grad_sq), u_sq_of_all, sum_lanes(v_sum), smallest_lane(smallest_live)};
}

template <class Acc, class V>
RunSums sum_run_exactly(const Acc* grad, const V* v, std::size_t n, const Moment& moment) {
    if (moment.eps_root <= kLargestLostEps) {
        const RunSums sums = sum_run<Acc, true>(grad, v, n, moment);
        const double lost_beside = moment.eps_root * (sizeof(Acc) == 4 ? 0x1p27 : 0x1p54);
        const double least = lost_beside < moment.root_floor ? moment.root_floor : lost_beside;
        const bool lost = sums.smallest_live > 0 && sums.smallest_live >= least * least;
        if (lost && __builtin_isfinite(sums.u_sq)) return sums;
    }
    return sum_run<Acc, false>(grad, v, n, moment);
}

// Whether a new v rounds to more than a float holds.
bool exceeds_float(const double* grad, const float* v, std::size_t n, const Moment& moment) {
    Doubles exceeding = broadcast(0.0);
    for (std::size_t k = 0; k < n; k += kGroup) {
        const std::size_t rest = n - k < kGroup ? n - k : kGroup;
        const Doubles now =
            new_v(load_first<double>(grad + k, rest), load_first<double>(v + k, rest), moment);
        exceeding = exceeding + outside(padded_with(now, rest, 0), 0, kLargestFloat);
    }
    return sum_lanes(exceeding) > 0;
}

template <class V>
UnfactoredSums measure_unfactored_of(const Block& run, const V* v, const Moment& moment,
                                     bool wide) {
    const std::size_t n = run.cols;
    if (!wide) {
        float buffer[kChunk];
        const auto* const grad = numbers_of<const float>(read_block(run, buffer));
        const RunSums sums = sum_run_exactly(grad, v, n, moment);
        const bool fits_float =
            moment.eps_root <= kLargestNarrowEps && moment.root_floor <= kLargestNarrowEps &&
            sums.smallest_live >= kSmallestNarrowV && sums.V <= kLargestNarrowV &&
            sums.u_sq >= kSmallestNarrowUSq && sums.u_sq <= kLargestNarrowV;
        if (fits_float) return {sums.grad_sq, sums.u_sq, false, false};
    }
    double buffer[kChunk];
    const auto* const grad = numbers_of<const double>(read_block(run, buffer));
    const RunSums sums = sum_run_exactly(grad, v, n, moment);
    bool overflows = false;
    if constexpr (std::is_same_v<V, float>)
        overflows = !(sums.V <= kLargestNarrowV) && exceeds_float(grad, v, n, moment);
    return {sums.grad_sq, sums.u_sq, true, overflows};
}

// Calls body(v's numbers): v is of one of two formats.
template <class Body>
ADAFACTOR_INLINE auto with_v(const Block& v, const Body& body) {
    return with_type<double, float>(v.format, [&](auto type) __attribute__((always_inline)) {
        return body(numbers_of<decltype(type)>(v));
    });
}

UnfactoredSums measure_unfactored(const Block& grad, const Block& v, const Moment& moment,
                                  bool wide) {
    return with_v(v, [&](const auto* numbers) __attribute__((always_inline)) {
        return measure_unfactored_of(grad, numbers, moment, wide);
    });
}

template <DescentKind kind, class Acc, class V>
[[gnu::noinline]] void apply_unfactored_in(Acc* param, Acc* m, const Acc* grad, V* v, std::size_t n,
                                           const Moment& given, const Descent& given_descent) {
    const Moment moment = given;  // which no store can change, as the compiler then knows
    const Descent descent = given_descent;
    constexpr bool has_momentum = kind == DescentKind::with_momentum;
    const Doubles eps_means = broadcast(moment.eps_means);
    // load_lanes(number, from), store_lanes(to, x): of whole lanes, or of the first of them.
    const auto apply_lanes = [&](auto number, std::size_t k, const auto& load_lanes,
                                 const auto& store_lanes) __attribute__((always_inline)) {
        constexpr std::size_t lanes = number;
        const NewParam<kind, Acc, lanes> new_param(descent);
        const Lanes<Acc, lanes> weight = broadcast<Acc, lanes>(Acc(descent.weight));
        const Lanes<Acc, lanes> g = load_lanes(number, grad + k);
        Doubles now[lanes / kGroup], V_now[lanes / kGroup];
        for (std::size_t c = 0; c < lanes / kGroup; ++c) {
            const std::size_t j = k + c * kGroup;
            now[c] = new_v(converted<double>(load_lanes(kOneGroup, grad + j)),
                           converted<double>(load_lanes(kOneGroup, v + j)), moment);
            V_now[c] = now[c] + eps_means;
        }
        const Lanes<Acc, lanes> x = weight * u_of(g, in_one<Acc>(V_now), moment);
        Lanes<Acc, lanes> first_moment;
        if constexpr (has_momentum) first_moment = load_lanes(number, m + k);
        store_lanes(param + k, new_param(load_lanes(number, param + k), x, first_moment));
        if constexpr (has_momentum) store_lanes(m + k, first_moment);
        for (std::size_t c = 0; c < lanes / kGroup; ++c) store_lanes(v + k + c * kGroup, now[c]);
    };
    constexpr std::integral_constant<std::size_t, kLanes<Acc>> all_lanes;
    std::size_t k = 0;
    for (; k + kLanes<Acc> <= n; k += kLanes<Acc>) {
        apply_lanes(
            all_lanes, k,
            []<class T>(auto number, const T* from)
                __attribute__((always_inline)) { return load<T, number>(from); },
            [](auto* to, const auto& x) __attribute__((always_inline)) { store(to, x); });
    }
    for (; k < n; k += kGroup) {
        const std::size_t rest = n - k < kGroup ? n - k : kGroup;
        apply_lanes(
            kOneGroup, k,
            [rest]<class T>(auto number, const T* from)
                __attribute__((always_inline)) { return load_first<T, number>(from, rest); },
            [rest](auto* to, const auto& x)
                __attribute__((always_inline)) { store_first(to, x, rest); });
    }
}

template <class Acc>
void apply_unfactored_as(const StepBlocks& blocks, const Block& v, const Moment& moment,
                         const Descent& descent, const Rounding& rounding) {
    Acc param_buffer[kChunk], m_buffer[kChunk], grad_buffer[kChunk];
    const std::size_t n = blocks.param.cols;
    const Block param = read_block(blocks.param, param_buffer);
    const Block m = read_block(blocks.m, m_buffer);
    const Block grad = read_block(blocks.grad, grad_buffer);
    with_kind(descent, m, [&](auto kind) __attribute__((always_inline)) {
        with_v(v, [&](auto* numbers) __attribute__((always_inline)) {
            apply_unfactored_in<kind.value>(numbers_of<Acc>(param), numbers_of<Acc>(m),
                                            numbers_of<const Acc>(grad), numbers, n, moment,
                                            descent);
        });
    });
    write_block<Acc>(param, blocks.param, rounding);
    write_block<Acc>(m, blocks.m, for_moment(rounding));
    write_block<Acc>(param, blocks.copy, rounding);
}

// What weight and rate must be for u and m to be float.
ADAFACTOR_INLINE bool is_narrow(double x) {
    return x == 0 || (x >= 1e-30 && x <= 1e30) || (x <= -1e-30 && x >= -1e30);
}

void apply_unfactored(const StepBlocks& blocks, const Block& v, const Moment& moment,
                      const Descent& descent, const Rounding& rounding, bool wide) {
    if (!wide && is_narrow(descent.weight) && is_narrow(descent.rate) &&
        is_narrow_decay(descent.decay))
        apply_unfactored_as<float>(blocks, v, moment, descent, rounding);
    else
        apply_unfactored_as<double>(blocks, v, moment, descent, rounding);
}
