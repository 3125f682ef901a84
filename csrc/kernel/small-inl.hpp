// Both sweeps of a batch of small matrices, several at once: each lane has a matrix of its own. All
// arrays are (elements or lines, kLanesOfSmall), all arithmetic is in double. Like v, the running
// means are computed twice instead of stored early.

static_assert(kLanesOfSmall == kLanes<double>);

struct SmallMeans {
    Doubles row[kSmallElements], col[kSmallElements];
};

// The new running means; returns each matrix's sum of squares.
template <class G>
ADAFACTOR_INLINE Doubles find_means(const G* grad, const SmallState& state, const Moment& moment,
                                    SmallMeans& now) {
    const std::size_t rows = state.rows, cols = state.cols;
    const Doubles beta2 = broadcast(moment.beta2), rest = broadcast(1 - moment.beta2);
    const Doubles scale = broadcast(moment.scale), eps = broadcast(moment.eps);
    const auto mean = [&](const double* old, const Doubles& sum_sq, std::size_t length) {
        const Doubles count = broadcast(double(length));
        return beta2 * load<double>(old) + rest * (sum_sq * scale / count + eps);
    };
    Doubles total = broadcast(0.0);
    for (std::size_t j = 0; j < cols; ++j) now.col[j] = broadcast(0.0);
    for (std::size_t i = 0; i < rows; ++i) {
        Doubles sum_sq = broadcast(0.0);
        for (std::size_t j = 0; j < cols; ++j) {
            const Doubles g = load<double>(grad + (i * cols + j) * kLanesOfSmall);
            const Doubles g_sq = g * g;
            sum_sq = sum_sq + g_sq;
            now.col[j] = now.col[j] + g_sq;
        }
        now.row[i] = mean(state.exp_row + i * kLanesOfSmall, sum_sq, cols);
        total = total + sum_sq;
    }
    for (std::size_t j = 0; j < cols; ++j)
        now.col[j] = mean(state.exp_col + j * kLanesOfSmall, now.col[j], rows);
    return total;
}

// Makes factors of means: sqrt(V) is row times col.
ADAFACTOR_INLINE void factor_means(const SmallState& state, const Moment& moment, SmallMeans& now) {
    const Doubles eps_means = broadcast(moment.eps_means);
    Doubles mean = broadcast(0.0);
    for (std::size_t i = 0; i < state.rows; ++i) mean = mean + now.row[i];
    mean = at_least(broadcast(moment.mean_floor), mean / broadcast(double(state.rows)));
    for (std::size_t i = 0; i < state.rows; ++i)
        now.row[i] = square_root((now.row[i] + eps_means) / mean);
    for (std::size_t j = 0; j < state.cols; ++j) now.col[j] = square_root(now.col[j] + eps_means);
}

// Calls body(element, u) for every element of the matrices.
template <class G, class Body>
ADAFACTOR_INLINE void for_each_u(const G* grad, const SmallState& state, const Moment& moment,
                                 const SmallMeans& factors, const Body& body) {
    const Doubles eps = broadcast(moment.eps_root), floor = broadcast(moment.root_floor);
    for (std::size_t i = 0; i < state.rows; ++i) {
        for (std::size_t j = 0; j < state.cols; ++j) {
            const std::size_t k = (i * state.cols + j) * kLanesOfSmall;
            const Doubles root = factors.row[i] * factors.col[j] + eps;
            body(k, load<double>(grad + k) / at_least(floor, root));
        }
    }
}

template <class P, class G>
void measure_small(const P* param, const G* grad, const SmallState& state, const Moment& moment,
                   SmallSums& sums) {
    SmallMeans means;
    store(sums.grad_sq, find_means(grad, state, moment, means));
    factor_means(state, moment, means);
    Doubles u_sq = broadcast(0.0), param_sq = broadcast(0.0);
    for_each_u(grad, state, moment, means, [&](std::size_t k, const Doubles& u) {
        u_sq = u_sq + u * u;
        if (param == nullptr) return;
        const Doubles p = load<double>(param + k);
        param_sq = param_sq + p * p;
    });
    store(sums.u_sq, u_sq);
    store(sums.param_sq, param_sq);
}

template <Moves moves, class P, class G>
ADAFACTOR_INLINE void apply_small_as(P* param, P* m, const G* grad, const SmallState& state,
                                     const Moment& moment, const Move& move) {
    SmallMeans means;
    find_means(grad, state, moment, means);
    for (std::size_t i = 0; i < state.rows; ++i)
        store(state.exp_row + i * kLanesOfSmall, means.row[i]);
    for (std::size_t j = 0; j < state.cols; ++j)
        store(state.exp_col + j * kLanesOfSmall, means.col[j]);
    factor_means(state, moment, means);
    const Doubles weight = broadcast(move.weight);
    const Mover<moves, double> moved(move);
    for_each_u(grad, state, moment, means, [&](std::size_t k, const Doubles& u) {
        Doubles first_moment;
        if constexpr (moves == Moves::with_momentum) first_moment = load<double>(m + k);
        store(param + k, moved(load<double>(param + k), weight * u, first_moment));
        if constexpr (moves == Moves::with_momentum) store(m + k, first_moment);
    });
}

template <class P, class G>
void apply_small(P* param, P* m, const G* grad, const SmallState& state, const Moment& moment,
                 const Move& move) {
    switch (moves_of(move, m)) {
        case Moves::plain:
            return apply_small_as<Moves::plain>(param, m, grad, state, moment, move);
        case Moves::decayed:
            return apply_small_as<Moves::decayed>(param, m, grad, state, moment, move);
        case Moves::with_momentum:
            return apply_small_as<Moves::with_momentum>(param, m, grad, state, moment, move);
    }
}
