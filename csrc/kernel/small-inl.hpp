// Both sweeps of a batch of small matrices, several at once: each lane has a matrix of its own. All
// arrays are (elements or lines, kLanesOfSmall), all arithmetic is in double. Like v, the running
// means are computed twice instead of stored early.

static_assert(kLanesOfSmall == kLanes<double>);

// The columns' lie behind the rows', as all that is read and written here lies together: writes to
// arrays that are powers of two apart would hold up reads.
struct SmallMeans {
    Doubles lines[2 * kSmallElements];
    Doubles *row = lines, *col;

    explicit SmallMeans(const SmallState& state) : col(lines + state.rows) {}
};

// The new running means; returns each matrix's sum of squares.
template <class G>
ADAFACTOR_INLINE Doubles find_means(const G* grad, const SmallState& state, const Moment& moment,
                                    SmallMeans& now) {
    const std::size_t rows = state.rows, cols = state.cols;
    const Doubles beta2 = broadcast(moment.beta2), rest = broadcast(1 - moment.beta2);
    const Doubles eps = broadcast(moment.eps);
    const Doubles of_row = broadcast(moment.scale / double(cols));
    const Doubles of_col = broadcast(moment.scale / double(rows));
    const auto mean = [&](const double* old, const Doubles& sum_sq, const Doubles& scale) {
        return beta2 * load<double>(old) + rest * (sum_sq * scale + eps);
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
        now.row[i] = mean(state.exp_row + i * kLanesOfSmall, sum_sq, of_row);
        total = total + sum_sq;
    }
    for (std::size_t j = 0; j < cols; ++j)
        now.col[j] = mean(state.exp_col + j * kLanesOfSmall, now.col[j], of_col);
    return total;
}

// Makes factors of means: V is row times col; with `roots`, sqrt(V) is.
template <bool roots>
ADAFACTOR_INLINE void factor_means(const SmallState& state, const Moment& moment, SmallMeans& now) {
    const Doubles eps_means = broadcast(moment.eps_means);
    Doubles mean = broadcast(0.0);
    for (std::size_t i = 0; i < state.rows; ++i) mean = mean + now.row[i];
    mean = at_least(broadcast(moment.mean_floor), mean * broadcast(1 / double(state.rows)));
    const auto factor = [](const Doubles& x) { return roots ? square_root(x) : x; };
    for (std::size_t i = 0; i < state.rows; ++i)
        now.row[i] = factor((now.row[i] + eps_means) / mean);
    for (std::size_t j = 0; j < state.cols; ++j) now.col[j] = factor(now.col[j] + eps_means);
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

// Sums of u^2; no root of V is needed where nothing is added to it.
template <class G>
ADAFACTOR_INLINE Doubles sum_u_squares_of(const G* grad, const SmallState& state,
                                          const Moment& moment, SmallMeans& means) {
    Doubles u_sq = broadcast(0.0);
    const double floor_sq = moment.root_floor * moment.root_floor;
    const bool loses_floor = moment.root_floor > 0 && floor_sq < 0x1p-1022;
    if (moment.eps_root != 0 || loses_floor) {
        factor_means<true>(state, moment, means);
        for_each_u(grad, state, moment, means,
                   [&](std::size_t, const Doubles& u) { u_sq = u_sq + u * u; });
        return u_sq;
    }
    factor_means<false>(state, moment, means);
    const Doubles floor = broadcast(floor_sq);
    for (std::size_t i = 0; i < state.rows; ++i) {
        for (std::size_t j = 0; j < state.cols; ++j) {
            const Doubles g = load<double>(grad + (i * state.cols + j) * kLanesOfSmall);
            u_sq = u_sq + g * g / at_least(floor, means.row[i] * means.col[j]);
        }
    }
    return u_sq;
}

// Calls body(state) so that the compiler knows the size of matrices of one element: a 1x1
// convolution has nothing else.
template <class Body>
ADAFACTOR_INLINE void with_known_size(const SmallState& state, const Body& body) {
    if (state.rows == 1 && state.cols == 1)
        body(SmallState{state.exp_row, state.exp_col, 1, 1});
    else
        body(state);
}

template <class P, class G>
ADAFACTOR_INLINE void measure_small_of(const P* param, const G* grad, const SmallState& state,
                                       const Moment& moment, SmallSums& sums) {
    SmallMeans means(state);
    store(sums.grad_sq, find_means(grad, state, moment, means));
    store(sums.u_sq, sum_u_squares_of(grad, state, moment, means));
    Doubles param_sq = broadcast(0.0);
    const std::size_t size = param != nullptr ? state.rows * state.cols * kLanesOfSmall : 0;
    for (std::size_t k = 0; k < size; k += kLanesOfSmall) {
        const Doubles p = load<double>(param + k);
        param_sq = param_sq + p * p;
    }
    store(sums.param_sq, param_sq);
}

template <class P, class G>
void measure_small(const P* param, const G* grad, const SmallState& state, const Moment& moment,
                   SmallSums& sums) {
    with_known_size(state, [&](const SmallState& known) __attribute__((always_inline)) {
        measure_small_of(param, grad, known, moment, sums);
    });
}

template <Moves moves, class P, class G>
ADAFACTOR_INLINE void apply_small_as(P* param, P* m, const G* grad, const SmallState& state,
                                     const Moment& moment, const Move& move) {
    SmallMeans means(state);
    find_means(grad, state, moment, means);
    for (std::size_t i = 0; i < state.rows; ++i)
        store(state.exp_row + i * kLanesOfSmall, means.row[i]);
    for (std::size_t j = 0; j < state.cols; ++j)
        store(state.exp_col + j * kLanesOfSmall, means.col[j]);
    factor_means<true>(state, moment, means);
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
    with_known_size(state, [&](const SmallState& known) __attribute__((always_inline)) {
        switch (moves_of(move, m)) {
            case Moves::plain:
                return apply_small_as<Moves::plain>(param, m, grad, known, moment, move);
            case Moves::decayed:
                return apply_small_as<Moves::decayed>(param, m, grad, known, moment, move);
            case Moves::with_momentum:
                return apply_small_as<Moves::with_momentum>(param, m, grad, known, moment, move);
        }
    });
}
