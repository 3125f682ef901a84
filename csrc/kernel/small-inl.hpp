// Both sweeps of a batch of small matrices, several at once: each lane has a matrix of its own. All
// arrays are (elements or lines, kLanesOfSmall), all arithmetic is in double, whatever the formats.
// Like v, the running means are computed twice instead of stored early.

static_assert(kLanesOfSmall == kLanes<double>);

// The columns' lie behind the rows', as all that is read and written here lies together: writes to
// arrays that are powers of two apart would hold up reads.
struct SmallMeans {
    Doubles lines[2 * kSmallElements];
    Doubles *row = lines, *col;

    explicit SmallMeans(const SmallState& state) : col(lines + state.rows) {}
};

// The new running means; returns each matrix's sum of squares.
template <class T>
ADAFACTOR_INLINE Doubles find_means(const T* grad, const SmallState& state, const Moment& moment,
                                    SmallMeans& now) {
    const std::size_t rows = state.rows, cols = state.cols;
    const RunningMean<Doubles> running_mean(moment);
    const Doubles of_row = broadcast(moment.scale / double(cols));
    const Doubles of_col = broadcast(moment.scale / double(rows));
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
        now.row[i] = running_mean(load<double>(state.exp_row + i * kLanesOfSmall), sum_sq * of_row);
        total = total + sum_sq;
    }
    for (std::size_t j = 0; j < cols; ++j)
        now.col[j] =
            running_mean(load<double>(state.exp_col + j * kLanesOfSmall), now.col[j] * of_col);
    return total;
}

ADAFACTOR_INLINE Doubles mean_of_rows(const SmallState& state, const Moment& moment,
                                      const SmallMeans& means) {
    Doubles sum = broadcast(0.0);
    for (std::size_t i = 0; i < state.rows; ++i) sum = sum + means.row[i];
    return at_least(broadcast(moment.mean_floor), sum * broadcast(1 / double(state.rows)));
}

// Whether nothing is added to the root of V, nor compared with it.
inline bool is_separable(const Moment& moment) {
    return moment.eps_root == 0 && moment.root_floor == 0;
}

// Makes factors of means: sqrt(V) is row times col; if separable, 1/sqrt(V) is.
ADAFACTOR_INLINE void factor_means(const SmallState& state, const Moment& moment,
                                   SmallMeans& means) {
    const Doubles eps_means = broadcast(moment.eps_means), one = broadcast(1.0);
    const bool separable = is_separable(moment);
    const Doubles root_of_mean = square_root(mean_of_rows(state, moment, means));
    for (std::size_t i = 0; i < state.rows; ++i) {
        const Doubles root = square_root(means.row[i] + eps_means);
        means.row[i] = separable ? root_of_mean / root : root / root_of_mean;
    }
    for (std::size_t j = 0; j < state.cols; ++j) {
        const Doubles root = square_root(means.col[j] + eps_means);
        means.col[j] = separable ? one / root : root;
    }
}

// Calls body(element, u) for every element of the matrices.
template <class T, class Body>
ADAFACTOR_INLINE void for_each_u(const T* grad, const SmallState& state, const Moment& moment,
                                 const SmallMeans& factors, const Body& body) {
    const Doubles eps = broadcast(moment.eps_root), floor = broadcast(moment.root_floor);
    const bool separable = is_separable(moment);
    for (std::size_t i = 0; i < state.rows; ++i) {
        const Doubles& row = factors.row[i];
        for (std::size_t j = 0; j < state.cols; ++j) {
            const std::size_t k = (i * state.cols + j) * kLanesOfSmall;
            const Doubles g = load<double>(grad + k);
            const Doubles& col = factors.col[j];
            body(k, separable ? g * row * col : g / at_least(floor, row * col + eps));
        }
    }
}

// Sums of u^2 without a root of V, where nothing is added to it; returns whether they are right:
// whether every V is a normal number. The root of one that is not may be.
template <class T>
ADAFACTOR_INLINE bool sum_u_squares_of_v(const T* grad, const SmallState& state,
                                         const Moment& moment, const SmallMeans& means,
                                         Doubles& u_sq) {
    const Doubles eps_means = broadcast(moment.eps_means);
    const Doubles floor = broadcast(moment.root_floor * moment.root_floor);
    const Doubles mean = mean_of_rows(state, moment, means);
    Doubles wrong = broadcast(0.0);
    u_sq = broadcast(0.0);
    for (std::size_t i = 0; i < state.rows; ++i) {
        const Doubles row = (means.row[i] + eps_means) / mean;
        for (std::size_t j = 0; j < state.cols; ++j) {
            const Doubles g = load<double>(grad + (i * state.cols + j) * kLanesOfSmall);
            const Doubles v = at_least(floor, row * (means.col[j] + eps_means));
            wrong = wrong + outside(v, __DBL_MIN__, __DBL_MAX__);
            u_sq = u_sq + g * g / v;
        }
    }
    return sum_lanes(wrong) == 0;
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

// param may be null.
template <class T>
[[gnu::noinline]] void measure_small_of(const T* param, const T* grad, const SmallState& state,
                                        const Moment& moment, SmallSums& sums) {
    with_known_size(state, [&](const SmallState& known) __attribute__((always_inline)) {
        SmallMeans means(known);
        store(sums.grad_sq, find_means(grad, known, moment, means));
        Doubles u_sq, param_sq = broadcast(0.0);
        if (moment.eps_root != 0 || !sum_u_squares_of_v(grad, known, moment, means, u_sq)) {
            u_sq = broadcast(0.0);
            factor_means(known, moment, means);
            for_each_u(grad, known, moment, means,
                       [&](std::size_t, const Doubles& u) { u_sq = u_sq + u * u; });
        }
        store(sums.u_sq, u_sq);
        const std::size_t size = param != nullptr ? known.rows * known.cols * kLanesOfSmall : 0;
        for (std::size_t k = 0; k < size; k += kLanesOfSmall) {
            const Doubles p = load<double>(param + k);
            param_sq = param_sq + p * p;
        }
        store(sums.param_sq, param_sq);
    });
}

template <DescentKind kind, class T>
[[gnu::noinline]] void apply_small_of(T* param, T* m, const T* grad, const SmallState& state,
                                      const Moment& moment, const Descent& descent) {
    constexpr bool has_momentum = kind == DescentKind::with_momentum;
    with_known_size(state, [&](const SmallState& known) __attribute__((always_inline)) {
        SmallMeans means(known);
        find_means(grad, known, moment, means);
        for (std::size_t i = 0; i < known.rows; ++i)
            store(known.exp_row + i * kLanesOfSmall, means.row[i]);
        for (std::size_t j = 0; j < known.cols; ++j)
            store(known.exp_col + j * kLanesOfSmall, means.col[j]);
        factor_means(known, moment, means);
        const Doubles weight = broadcast(descent.weight);
        const NewParam<kind, double> new_param(descent);
        for_each_u(grad, known, moment, means, [&](std::size_t k, const Doubles& u) {
            Doubles first_moment;
            if constexpr (has_momentum) first_moment = load<double>(m + k);
            store(param + k, new_param(load<double>(param + k), weight * u, first_moment));
            if constexpr (has_momentum) store(m + k, first_moment);
        });
    });
}

constexpr std::size_t kSmallNumbers = kSmallElements * kLanesOfSmall;

template <class T>
void measure_small_as(const Block& param, const Block& grad, const SmallState& state,
                      const Moment& moment, SmallSums& sums) {
    T param_buffer[kSmallNumbers], grad_buffer[kSmallNumbers];
    measure_small_of(numbers_of<const T>(read_block(param, param_buffer)),
                     numbers_of<const T>(read_block(grad, grad_buffer)), state, moment, sums);
}

template <class T>
void apply_small_as(const StepBlocks& blocks, const SmallState& state, const Moment& moment,
                    const Descent& descent, const Rounding& rounding) {
    T param_buffer[kSmallNumbers], m_buffer[kSmallNumbers], grad_buffer[kSmallNumbers];
    const Block param = read_block(blocks.param, param_buffer);
    const Block m = read_block(blocks.m, m_buffer);
    const Block grad = read_block(blocks.grad, grad_buffer);
    with_kind(descent, m, [&](auto kind) __attribute__((always_inline)) {
        apply_small_of<kind.value>(numbers_of<T>(param), numbers_of<T>(m),
                                   numbers_of<const T>(grad), state, moment, descent);
    });
    write_block<T>(param, blocks.param, rounding);
    write_block<T>(m, blocks.m, for_moment(rounding));
    write_block<T>(param, blocks.copy, rounding);
}

void measure_small(const Block& param, const Block& grad, const SmallState& state,
                   const Moment& moment, SmallSums& sums) {
    if (param.format == Format::float64 || grad.format == Format::float64)
        measure_small_as<double>(param, grad, state, moment, sums);
    else
        measure_small_as<float>(param, grad, state, moment, sums);
}

void apply_small(const StepBlocks& blocks, const SmallState& state, const Moment& moment,
                 const Descent& descent, const Rounding& rounding) {
    if (blocks.param.format == Format::float64 || blocks.grad.format == Format::float64)
        apply_small_as<double>(blocks, state, moment, descent, rounding);
    else
        apply_small_as<float>(blocks, state, moment, descent, rounding);
}
