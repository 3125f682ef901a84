// The sweep that writes: param -= step u, with u formed from grad as struct Update says.
//
// The squares of what was written are summed while it is in cache, by the loops that measure uses:
// the sums have the same bits.

// Bytes ahead of a store that its line is asked for; the processor foresees reads well enough.
constexpr std::ptrdiff_t kWriteAhead = 512;

template <bool separable, class Acc>
ADAFACTOR_INLINE Lanes<Acc> form_u(const Lanes<Acc>& g, const Lanes<Acc>& row,
                                   const Lanes<Acc>& col, const Lanes<Acc>& eps) {
    if constexpr (separable) return g * (row * col);
    return g / (row * col + eps);
}

template <bool separable, class Acc, std::size_t R, class P, class G>
ADAFACTOR_INLINE void apply_some_rows(const Block<P>& param, const Block<const G>& grad,
                                      const Update& update, std::size_t i) {
    const Acc* row_factor = static_cast<const Acc*>(update.row) + i;
    const Acc* col_factor = static_cast<const Acc*>(update.col);
    const std::size_t cols = param.cols;
    P* p[R];
    const G* g[R];
    rows_of(param, i, p);
    rows_of(grad, i, g);
    Lanes<Acc> row[R];
    for (std::size_t r = 0; r < R; ++r) row[r] = broadcast(row_factor[r]);
    const Lanes<Acc> eps = broadcast(Acc(update.eps)), step = broadcast(Acc(update.step));
    auto moved = [&](const Lanes<Acc>& old, const Lanes<Acc>& u) __attribute__((always_inline)) {
        if constexpr (separable) return old - u;
        return old - step * u;
    };
    std::size_t j = 0;
    for (; j + kLanes<Acc> <= cols; j += kLanes<Acc>) {
        const Lanes<Acc> col = load<Acc>(col_factor + j);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> u = form_u<separable>(load<Acc>(g[r] + j), row[r], col, eps);
            __builtin_prefetch(reinterpret_cast<const char*>(p[r] + j) + kWriteAhead, 1);
            store(p[r] + j, moved(load<Acc>(p[r] + j), u));
        }
    }
    if (const std::size_t n = cols - j; n > 0) {
        const Lanes<Acc> col = load_first<Acc>(col_factor + j, n);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> u = form_u<separable>(load_first<Acc>(g[r] + j, n), row[r], col, eps);
            store_first(p[r] + j, moved(load_first<Acc>(p[r] + j, n), u), n);
        }
    }
}

template <bool separable, class Acc, std::size_t R, class P, class G>
ADAFACTOR_INLINE void apply_and_sum(const Block<P>& param, const Block<const G>& grad,
                                    const Update& update, std::size_t i, double* sum_sq) {
    apply_some_rows<separable, Acc, R>(param, grad, update, i);
    const Block<const P> written{param.data, param.stride, param.rows, param.cols};
    if (update.sums_param) sum_squares_of_some_rows<P, R>(written, i, sum_sq);
}

template <bool separable, class Acc, class P, class G>
ADAFACTOR_INLINE double apply_in(const Block<P>& param, const Block<const G>& grad,
                                 const Update& update) {
    const Block<const P> written{param.data, param.stride, param.rows, param.cols};
    double total = 0, sum_sq[kPanelRows];
    for (std::size_t begin = 0; begin < param.rows; begin += kPanelRows) {
        const std::size_t end = begin + kPanelRows < param.rows ? begin + kPanelRows : param.rows;
        std::size_t i = begin;
        for (; i + 4 <= end; i += 4)
            apply_and_sum<separable, Acc, 4>(param, grad, update, i, sum_sq + (i - begin));
        for (; i < end; ++i)
            apply_and_sum<separable, Acc, 1>(param, grad, update, i, sum_sq + (i - begin));
        if (!update.sums_param) continue;
        correct_untrusted<P>(written, begin, end, sum_sq);
        total += sum_by_fours(sum_sq, end - begin);
    }
    return total;
}

// Arithmetic in double as soon as one of the two is, or where float's range would not do.
template <class P, class G>
double apply(const Block<P>& param, const Block<const G>& grad, const Update& update) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        if (!update.wide)
            return update.separable ? apply_in<true, float>(param, grad, update)
                                    : apply_in<false, float>(param, grad, update);
    }
    return update.separable ? apply_in<true, double>(param, grad, update)
                            : apply_in<false, double>(param, grad, update);
}

// The direct form's RMS(u) needs a sweep of its own: sum_ij u[i,j]^2.
template <class Acc, class G>
ADAFACTOR_INLINE double sum_u_squares_in(const Block<const G>& grad, const Update& update) {
    const Acc* col_factor = static_cast<const Acc*>(update.col);
    const Lanes<Acc> eps = broadcast(Acc(update.eps));
    double total = 0;
    for (std::size_t i = 0; i < grad.rows; ++i) {
        const G* g = row_of(grad, i);
        const Lanes<Acc> row = broadcast(static_cast<const Acc*>(update.row)[i]);
        for (std::size_t begin = 0; begin < grad.cols; begin += kChunk) {
            const std::size_t end = begin + kChunk < grad.cols ? begin + kChunk : grad.cols;
            Lanes<Acc> sum = broadcast(Acc(0));
            std::size_t j = begin;
            for (; j + kLanes<Acc> <= end; j += kLanes<Acc>) {
                const Lanes<Acc> u =
                    form_u<false>(load<Acc>(g + j), row, load<Acc>(col_factor + j), eps);
                sum = sum + u * u;
            }
            if (j < end) {
                // Lanes past the end hold grad 0 over eps, or 0 / 0 where eps is 0.
                const Lanes<Acc> u = form_u<false>(load_first<Acc>(g + j, end - j), row,
                                                   load_first<Acc>(col_factor + j, end - j), eps);
                alignas(64) Acc lane[kLanes<Acc>];
                store(lane, u);
                for (std::size_t k = end - j; k < kLanes<Acc>; ++k) lane[k] = 0;
                const Lanes<Acc> kept = load<Acc>(lane);
                sum = sum + kept * kept;
            }
            total += double(sum_lanes(sum));
        }
    }
    return total;
}

template <class G>
double sum_u_squares(const Block<const G>& grad, const Update& update) {
    if constexpr (sizeof(G) == sizeof(float)) {
        if (!update.wide) return sum_u_squares_in<float>(grad, update);
    }
    return sum_u_squares_in<double>(grad, update);
}
