// Both sweeps of a tensor that keeps its full second moment, over runs of consecutive elements.
// The new v is computed twice instead of stored early: measure writes nothing. It is computed in
// double, also where v is kept in float32, and V is made of that: only what is stored is rounded.
// Where neither param nor grad is float64 and v is in float's range, what follows v is in float: u
// has no more digits, and a root and a quotient in double take four times as long.

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
    return RunningMean<Doubles>(moment)(v, g * g * broadcast(moment.scale));
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

template <class Acc, bool eps_lost, class V>
RunSums sum_run(const Acc* grad, const V* v, std::size_t n, const Moment& moment) {
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
                                           const Moment& moment, const Descent& descent) {
    constexpr bool has_momentum = kind == DescentKind::with_momentum;
    const Group<Acc> weight = broadcast<Acc, kGroup>(Acc(descent.weight));
    const NewParam<kind, Acc, kGroup> new_param(descent);
    const Doubles eps_means = broadcast(moment.eps_means);
    // load_group(from), store_group(to, x): of a whole group, or of its first lanes.
    const auto apply_group = [&](std::size_t k, const auto& load_group,
                                 const auto& store_group) __attribute__((always_inline)) {
        const Group<Acc> g = load_group(grad + k);
        const Doubles now =
            new_v(converted<double>(g), converted<double>(load_group(v + k)), moment);
        const Group<Acc> x = weight * u_of<Acc>(g, now + eps_means, moment);
        Group<Acc> first_moment;
        if constexpr (has_momentum) first_moment = load_group(m + k);
        store_group(param + k, new_param(load_group(param + k), x, first_moment));
        if constexpr (has_momentum) store_group(m + k, first_moment);
        store_group(v + k, now);
    };
    std::size_t k = 0;
    for (; k + kGroup <= n; k += kGroup)
        apply_group(
            k,
            []<class T>(const T* from)
                __attribute__((always_inline)) { return load<T, kGroup>(from); },
            [](auto* to, const auto& x) __attribute__((always_inline)) { store(to, x); });
    if (const std::size_t rest = n - k; rest > 0)
        apply_group(
            k,
            [rest]<class T>(const T* from)
                __attribute__((always_inline)) { return load_first<T, kGroup>(from, rest); },
            [rest](auto* to, const auto& x)
                __attribute__((always_inline)) { store_first(to, x, rest); });
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
    if (!wide && is_narrow(descent.weight) && is_narrow(descent.rate))
        apply_unfactored_as<float>(blocks, v, moment, descent, rounding);
    else
        apply_unfactored_as<double>(blocks, v, moment, descent, rounding);
}
