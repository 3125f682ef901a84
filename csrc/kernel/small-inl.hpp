// Both sweeps of a batch of small matrices, several at once: each lane has a matrix of its own. All
// arrays are (elements or lines, kLanesOfSmall), all arithmetic is in double, whatever the formats.
// Like v, the running means are computed twice instead of stored early.

static_assert(kLanesOfSmall == kLanes<double>);

// `most`: elements of a matrix.
template <std::size_t most>
struct SmallSize {
    static constexpr std::size_t kMost = most;
    std::size_t rows, cols;

    std::size_t elements() const { return rows * cols; }
};

template <>
struct SmallSize<1> {
    static constexpr std::size_t kMost = 1, rows = 1, cols = 1;

    static constexpr std::size_t elements() { return 1; }
};

// Calls body(size) so that the compiler knows the size of matrices of one element: a 1x1
// convolution has nothing else.
template <class Body>
ADAFACTOR_INLINE void with_known_size(const SmallState& state, const Body& body) {
    if (state.rows == 1 && state.cols == 1)
        body(SmallSize<1>());
    else
        body(SmallSize<kSmallElements>{state.rows, state.cols});
}

// Calls body(first matrix, number) for all groups of lanes.
template <class Body>
ADAFACTOR_INLINE void for_matrix_lanes(const SmallState& state, const Body& body) {
    for (std::size_t first = 0; first < state.n; first += kLanesOfSmall)
        body(first, state.n - first < kLanesOfSmall ? state.n - first : kLanesOfSmall);
}

// The columns' lie behind the rows', as all that is read and written here lies together: writes to
// arrays that are powers of two apart would hold up reads.
template <class Size>
struct SmallMeans {
    Doubles lines[2 * Size::kMost];
    Doubles *row = lines, *col;

    explicit SmallMeans(const Size& size) : col(lines + size.rows) {}
};

template <class Size>
ADAFACTOR_INLINE void read_means(const SmallState& state, const Size& size, std::size_t first,
                                 std::size_t n, SmallMeans<Size>& means) {
    double buffer[Size::kMost * kLanesOfSmall];
    const double* const row =
        in_lanes<const double>(state.exp_row + first * size.rows, size.rows, n, buffer);
    for (std::size_t i = 0; i < size.rows; ++i)
        means.row[i] = load<double>(row + i * kLanesOfSmall);
    const double* const col =
        in_lanes<const double>(state.exp_col + first * size.cols, size.cols, n, buffer);
    for (std::size_t j = 0; j < size.cols; ++j)
        means.col[j] = load<double>(col + j * kLanesOfSmall);
}

template <class Size>
ADAFACTOR_INLINE void write_means(const SmallState& state, const Size& size, std::size_t first,
                                  std::size_t n, const SmallMeans<Size>& means) {
    const auto write = [n](const Doubles* lines, std::size_t n_lines, double* to)
                           __attribute__((always_inline)) {
                               if (n_lines == 1 && n == kLanesOfSmall) return store(to, lines[0]);
                               double buffer[Size::kMost * kLanesOfSmall];
                               for (std::size_t i = 0; i < n_lines; ++i)
                                   store(buffer + i * kLanesOfSmall, lines[i]);
                               copy_from_lanes(buffer, n_lines, n, to);
                           };
    write(means.row, size.rows, state.exp_row + first * size.rows);
    write(means.col, size.cols, state.exp_col + first * size.cols);
}

// The old running means become the new ones; returns each matrix's sum of squares.
template <class T, class Size>
ADAFACTOR_INLINE Doubles find_means(const T* grad, const Size& size, const Moment& moment,
                                    SmallMeans<Size>& means) {
    const std::size_t rows = size.rows, cols = size.cols;
    const RunningMean<Doubles> running_mean(moment);
    const Doubles of_row = broadcast(moment.scale / double(cols));
    const Doubles of_col = broadcast(moment.scale / double(rows));
    Doubles total = broadcast(0.0), col_sum_sq[Size::kMost];
    for (std::size_t i = 0; i < rows; ++i) {
        Doubles sum_sq = broadcast(0.0);
        for (std::size_t j = 0; j < cols; ++j) {
            const Doubles g = load<double>(grad + (i * cols + j) * kLanesOfSmall);
            const Doubles g_sq = g * g;
            sum_sq = sum_sq + g_sq;
            col_sum_sq[j] = i == 0 ? g_sq : col_sum_sq[j] + g_sq;
        }
        means.row[i] = running_mean(means.row[i], sum_sq * of_row);
        total = total + sum_sq;
    }
    for (std::size_t j = 0; j < cols; ++j)
        means.col[j] = running_mean(means.col[j], col_sum_sq[j] * of_col);
    return total;
}

template <class Size>
ADAFACTOR_INLINE Doubles mean_of_rows(const Size& size, const Moment& moment,
                                      const SmallMeans<Size>& means) {
    Doubles sum = broadcast(0.0);
    for (std::size_t i = 0; i < size.rows; ++i) sum = sum + means.row[i];
    return at_least(broadcast(moment.mean_floor), sum * broadcast(1 / double(size.rows)));
}

// Whether all lanes of x and y are the same positive finite number: their quotient is one, then.
ADAFACTOR_INLINE bool cancel(const Doubles& x, const Doubles& y) {
    Doubles differ;
    const Doubles zero = broadcast(0.0), one = broadcast(1.0), most = broadcast(__DBL_MAX__);
    ADAFACTOR_PARTS {
        const auto same = (x.part[part] == y.part[part]) & (x.part[part] > zero.part[part]) &
                          (x.part[part] <= most.part[part]);
        differ.part[part] = same ? zero.part[part] : one.part[part];
    }
    return sum_lanes(differ) == 0;
}

// x / y. In a matrix of one row that row's mean is the mean of rows, unless the floor is above it.
template <class Size>
ADAFACTOR_INLINE Doubles quotient(const Size& size, const Doubles& x, const Doubles& y) {
    if (size.rows == 1 && cancel(x, y)) return broadcast(1.0);
    return x / y;
}

// Whether nothing is added to the root of V, nor compared with it.
inline bool is_separable(const Moment& moment) {
    return moment.eps_root == 0 && moment.root_floor == 0;
}

// Makes factors of means: sqrt(V) is row times col; if separable, 1/sqrt(V) is.
template <class Size>
ADAFACTOR_INLINE void factor_means(const Size& size, const Moment& moment,
                                   SmallMeans<Size>& means) {
    const Doubles eps_means = broadcast(moment.eps_means), one = broadcast(1.0);
    const bool separable = is_separable(moment);
    const Doubles mean = mean_of_rows(size, moment, means);
    if (size.rows == 1 && cancel(means.row[0] + eps_means, mean)) {
        means.row[0] = one;
    } else {
        const Doubles root_of_mean = square_root(mean);
        for (std::size_t i = 0; i < size.rows; ++i) {
            const Doubles root = square_root(means.row[i] + eps_means);
            means.row[i] = separable ? root_of_mean / root : root / root_of_mean;
        }
    }
    for (std::size_t j = 0; j < size.cols; ++j) {
        const Doubles root = square_root(means.col[j] + eps_means);
        means.col[j] = separable ? one / root : root;
    }
}

// Calls body(element, u) for every element of the matrices.
template <class T, class Size, class Body>
ADAFACTOR_INLINE void for_each_u(const T* grad, const Size& size, const Moment& moment,
                                 const SmallMeans<Size>& factors, const Body& body) {
    const Doubles eps = broadcast(moment.eps_root), floor = broadcast(moment.root_floor);
    const bool separable = is_separable(moment);
    for (std::size_t i = 0; i < size.rows; ++i) {
        const Doubles& row = factors.row[i];
        for (std::size_t j = 0; j < size.cols; ++j) {
            const std::size_t k = (i * size.cols + j) * kLanesOfSmall;
            const Doubles g = load<double>(grad + k);
            const Doubles& col = factors.col[j];
            body(k, separable ? g * row * col : g / at_least(floor, row * col + eps));
        }
    }
}

// Sums of u^2 without a root of V, where nothing is added to it; returns whether they are right:
// whether every V is a normal number. The root of one that is not may be.
template <class T, class Size>
ADAFACTOR_INLINE bool sum_u_squares_of_v(const T* grad, const Size& size, const Moment& moment,
                                         const SmallMeans<Size>& means, Doubles& u_sq) {
    const Doubles eps_means = broadcast(moment.eps_means);
    const Doubles floor = broadcast(moment.root_floor * moment.root_floor);
    const Doubles mean = mean_of_rows(size, moment, means);
    Doubles wrong = broadcast(0.0);
    u_sq = broadcast(0.0);
    for (std::size_t i = 0; i < size.rows; ++i) {
        const Doubles row = quotient(size, means.row[i] + eps_means, mean);
        for (std::size_t j = 0; j < size.cols; ++j) {
            const Doubles g = load<double>(grad + (i * size.cols + j) * kLanesOfSmall);
            const Doubles v = at_least(floor, row * (means.col[j] + eps_means));
            wrong = wrong + outside(v, __DBL_MIN__, __DBL_MAX__);
            u_sq = u_sq + g * g / v;
        }
    }
    return sum_lanes(wrong) == 0;
}

// Adds the first n lanes to `sum`, one by one, and keeps them at `each`, which may be null.
ADAFACTOR_INLINE void add_lanes(const Doubles& x, std::size_t n, double& sum, double* each) {
    alignas(64) double lane[kLanesOfSmall];
    store(lane, x);
    if (n == kLanesOfSmall) {
#pragma GCC unroll 8
        for (std::size_t k = 0; k < kLanesOfSmall; ++k) sum += lane[k];
    } else {
        for (std::size_t k = 0; k < n; ++k) sum += lane[k];
    }
    if (each != nullptr) store_first(each, x, n);
}

// param may be null. State and moment are copies, which no store of the loops can change.
template <class T>
[[gnu::noinline]] void measure_small_of(const T* param, const T* grad, const SmallState state,
                                        const Moment moment, SmallSums& sums) {
    with_known_size(state, [&](const auto& size) __attribute__((always_inline)) {
        using Size = std::remove_cvref_t<decltype(size)>;
        T buffer[Size::kMost * kLanesOfSmall];
        SmallSums total = sums;
        for_matrix_lanes(state, [&](std::size_t first,
                                    std::size_t n) __attribute__((always_inline)) {
            const T* const g = in_lanes(grad + first * size.elements(), size.elements(), n, buffer);
            SmallMeans<Size> means(size);
            read_means(state, size, first, n, means);
            add_lanes(find_means(g, size, moment, means), n, total.grad_sq, nullptr);
            Doubles u_sq, param_sq = broadcast(0.0);
            if (moment.eps_root != 0 || !sum_u_squares_of_v(g, size, moment, means, u_sq)) {
                u_sq = broadcast(0.0);
                factor_means(size, moment, means);
                for_each_u(g, size, moment, means,
                           [&](std::size_t, const Doubles& u) { u_sq = u_sq + u * u; });
            }
            add_lanes(u_sq, n, total.u_sq,
                      total.each_u_sq == nullptr ? nullptr : total.each_u_sq + first);
            if (param == nullptr) return;
            const T* const p =
                in_lanes(param + first * size.elements(), size.elements(), n, buffer);
            for (std::size_t k = 0; k < size.elements(); ++k) {
                const Doubles x = load<double>(p + k * kLanesOfSmall);
                param_sq = param_sq + x * x;
            }
            add_lanes(param_sq, n, total.param_sq,
                      total.each_param_sq == nullptr ? nullptr : total.each_param_sq + first);
        });
        sums = total;
    });
}

// What becomes of the params of some matrices: by one rule, or in each lane by its matrix's own.
template <DescentKind kind>
struct SmallDescent {
    Doubles weight;
    NewParam<kind, double> new_param;

    explicit SmallDescent(const Descent& of_all)
        : weight(broadcast(of_all.weight)), new_param(of_all) {}

    SmallDescent(const Descent* each, std::size_t n) : SmallDescent(each[0]) {
        alignas(64) double lane[4][kLanesOfSmall];
        for (std::size_t k = 0; k < kLanesOfSmall; ++k) {
            const Descent& own = each[k < n ? k : 0];
            lane[0][k] = own.weight;
            lane[1][k] = own.decay;
            lane[2][k] = own.beta1;
            lane[3][k] = own.rate;
        }
        weight = load<double>(lane[0]);
        new_param.decay = load<double>(lane[1]);
        new_param.beta1 = load<double>(lane[2]);
        new_param.rate = load<double>(lane[3]);
    }
};

template <DescentKind kind, class T>
[[gnu::noinline]] void apply_small_of(T* param, T* m, const T* grad, const SmallState& state,
                                      const Moment& moment, const Descent* descent,
                                      bool each_descent) {
    constexpr bool has_momentum = kind == DescentKind::with_momentum;
    with_known_size(state, [&](const auto& size) __attribute__((always_inline)) {
        using Size = std::remove_cvref_t<decltype(size)>;
        constexpr std::size_t most = Size::kMost * kLanesOfSmall;
        T param_buffer[most], m_buffer[has_momentum ? most : 1], grad_buffer[most];
        SmallDescent<kind> by(*descent);
        for_matrix_lanes(
            state, [&](std::size_t first, std::size_t n) __attribute__((always_inline)) {
                const std::size_t elements = size.elements(), begin = first * elements;
                const T* const g = in_lanes(grad + begin, elements, n, grad_buffer);
                T* const p = in_lanes(param + begin, elements, n, param_buffer);
                T* first_moment = nullptr;
                if constexpr (has_momentum)
                    first_moment = in_lanes(m + begin, elements, n, m_buffer);
                if (each_descent) by = SmallDescent<kind>(descent + first, n);
                SmallMeans<Size> means(size);
                read_means(state, size, first, n, means);
                find_means(g, size, moment, means);
                write_means(state, size, first, n, means);
                factor_means(size, moment, means);
                for_each_u(g, size, moment, means, [&](std::size_t k, const Doubles& u) {
                    Doubles new_m;
                    if constexpr (has_momentum) new_m = load<double>(first_moment + k);
                    store(p + k, by.new_param(load<double>(p + k), by.weight * u, new_m));
                    if constexpr (has_momentum) store(first_moment + k, new_m);
                });
                put_back(p, elements, n, param + begin);
                if constexpr (has_momentum) put_back(first_moment, elements, n, m + begin);
            });
    });
}

template <class T>
void measure_small_as(const Block& param, const Block& grad, const SmallState& state,
                      const Moment& moment, SmallSums& sums) {
    T param_buffer[kSmallRun], grad_buffer[kSmallRun];
    measure_small_of(numbers_of<const T>(read_block(param, param_buffer)),
                     numbers_of<const T>(read_block(grad, grad_buffer)), state, moment, sums);
}

template <class T>
void apply_small_as(const StepBlocks& blocks, const SmallState& state, const Moment& moment,
                    const Descent* descent, bool each_descent, const Rounding& rounding) {
    T param_buffer[kSmallRun], m_buffer[kSmallRun], grad_buffer[kSmallRun];
    const Block param = read_block(blocks.param, param_buffer);
    const Block m = read_block(blocks.m, m_buffer);
    const Block grad = read_block(blocks.grad, grad_buffer);
    const Descent* decayed = descent;
    for (std::size_t k = 1; each_descent && k < state.n && decayed->decay == 0; ++k)
        decayed = descent + k;
    with_kind(*decayed, m, [&](auto kind) __attribute__((always_inline)) {
        apply_small_of<kind.value>(numbers_of<T>(param), numbers_of<T>(m),
                                   numbers_of<const T>(grad), state, moment, descent, each_descent);
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
                 const Descent* descent, bool each_descent, const Rounding& rounding) {
    if (blocks.param.format == Format::float64 || blocks.grad.format == Format::float64)
        apply_small_as<double>(blocks, state, moment, descent, each_descent, rounding);
    else
        apply_small_as<float>(blocks, state, moment, descent, each_descent, rounding);
}
