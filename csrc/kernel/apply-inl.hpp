// The sweep that writes: the one loop that forms u from grad and moves param and m by it, over
// everything that can differ at compile time.
//
// The squares of what was written are summed while it is in cache, by the loops that sum_squares
// uses: the sums have the same bits.

// Bytes ahead of a store that its line is asked for, if rows come side by side; the processor
// foresees reads well enough, and a first moment of floats too, as measured.
constexpr std::ptrdiff_t kWriteAhead = 512;

// The arguments of apply.
struct Step {
    const StepBlocks& blocks;
    const Factors& factors;
    const Descent& descent;
    const Rounding& rounding;
};

// Calls body(the step of a part of the blocks, from element (i, j) on). Factors are Acc's.
template <class Acc, class Body>
ADAFACTOR_INLINE void with_part(const Step& step, std::size_t i, std::size_t j, std::size_t rows,
                                std::size_t cols, const Body& body) {
    const auto part = [&](const Block& block) { return part_of(block, i, j, rows, cols); };
    const StepBlocks blocks{part(step.blocks.param), part(step.blocks.m), part(step.blocks.grad),
                            part(step.blocks.copy)};
    Factors factors = step.factors;
    factors.row = static_cast<const Acc*>(factors.row) + i;
    factors.col = static_cast<const Acc*>(factors.col) + j;
    Rounding rounding = step.rounding;
    rounding.first += i * rounding.row_step + j;
    body(Step{blocks, factors, step.descent, rounding});
}

// The formats of the arrays.
template <class Param_, class Grad_, class Copy_ = None, class M_ = None>
struct Formats {
    using Param = Param_;
    using Grad = Grad_;
    using Copy = Copy_;
    using M = M_;
};

// What else is known: how u is formed, how param descends, whether what is written is rounded at
// random or summed, and whether there are only whole groups of columns, and of four rows if it is
// rounded at random.
template <bool separable_, DescentKind kind_, bool stochastic_ = false, bool sums_ = false,
          bool whole_ = false>
struct Way {
    static constexpr bool separable = separable_;
    static constexpr DescentKind kind = kind_;
    static constexpr bool stochastic = stochastic_;
    static constexpr bool sums = sums_;
    static constexpr bool whole = whole_;
};

// Columns that are taken together.
template <class Acc>
constexpr std::size_t group_of(bool stochastic) {
    return stochastic ? kDrawn : kLanes<Acc>;
}

// Steps rows i to i + R - 1. With sums, sum_sq[r] becomes the sum of squares of what was written to
// row i + r, if Acc can be trusted with it.
template <class Acc, class Way, class F, std::size_t R>
ADAFACTOR_INLINE void apply_some_rows(const Step& step, std::size_t i, double* sum_sq) {
    constexpr bool has_momentum = Way::kind == DescentKind::with_momentum;
    constexpr bool has_copy = !std::is_same_v<typename F::Copy, None>;
    constexpr std::size_t width = kLanes<Acc>, group = group_of<Acc>(Way::stochastic);
    constexpr std::size_t chunk = Way::sums ? kChunkOf<Acc> : ~std::size_t(0);
    const std::size_t cols = step.blocks.param.cols;
    const Acc* const row_factor = static_cast<const Acc*>(step.factors.row) + i;
    const Acc* const col_factor = static_cast<const Acc*>(step.factors.col);
    Row<typename F::Param> param[R];
    Row<typename F::Grad> grad[R];
    Row<typename F::M> m[R];
    Row<typename F::Copy> copy[R];
    rows_of(step.blocks.param, i, param);
    rows_of(step.blocks.grad, i, grad);
    if constexpr (has_momentum) rows_of(step.blocks.m, i, m);
    if constexpr (has_copy) rows_of(step.blocks.copy, i, copy);
    Lanes<Acc> row[R];
    for (std::size_t r = 0; r < R; ++r) row[r] = broadcast(row_factor[r]);
    const WeightedU<Way::separable, Acc> weighted_u(step.factors, step.descent);
    const NewParam<Way::kind, Acc> new_param(step.descent);
    [[maybe_unused]] const Rounding rounding = step.rounding;
    Words drawn[R][kParts], words[kParts];
    Lanes<Acc> sum[R];

    // Steps `vectors` vectors of each row from column `here` on, the k-th of a draw.
    const auto take = [&](std::size_t here, auto vectors,
                          [[maybe_unused]] std::size_t k) __attribute__((always_inline)) {
        constexpr std::size_t U = vectors.value;
        // All is read before anything is written: a store holds up loads from places whose lower
        // address bits are the same, and those of another array's next row often are.
        Lanes<Acc> now[R][U], first_moment[R][U];
#pragma GCC unroll 4
        for (std::size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (std::size_t v = 0; v < U; ++v) {
                const std::size_t j = here + v * width;
                const Lanes<Acc> x =
                    weighted_u(read<Acc>(grad[r], j), row[r], load<Acc>(col_factor + j));
                if constexpr (has_momentum) first_moment[r][v] = read<Acc>(m[r], j);
                now[r][v] = new_param(read<Acc>(param[r], j), x, first_moment[r][v]);
                if constexpr (Way::sums) sum[r] = sum[r] + now[r][v] * now[r][v];
            }
        }
#pragma GCC unroll 4
        for (std::size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
            for (std::size_t v = 0; v < U; ++v) {
                const std::size_t j = here + v * width;
                if constexpr (R > 1) {
                    __builtin_prefetch(param[r].template at<char>(j) + kWriteAhead, 1);
                    if constexpr (has_momentum && kIsRounded<typename F::M>)
                        __builtin_prefetch(m[r].template at<char>(j) + kWriteAhead, 1);
                }
                const Words* const random =
                    Way::stochastic ? random_words(drawn[r], k, words) : nullptr;
                if constexpr (has_momentum) write(m[r], j, first_moment[r][v]);
                write(param[r], j, now[r][v], random);
                write(copy[r], j, now[r][v], random);
            }
        }
    };
    constexpr std::integral_constant<std::size_t, 1> one;
    constexpr std::integral_constant<std::size_t, 4> four;

    if constexpr (Way::sums)
        for (std::size_t r = 0; r < R; ++r) sum_sq[r] = 0;
    for (std::size_t j = 0; j < cols;) {
        const std::size_t end = cols - j < chunk ? cols : j + chunk;
        for (std::size_t r = 0; r < R; ++r) sum[r] = broadcast(Acc(0));
        if constexpr (R == 1)  // as many vectors at once as four rows have
            for (; j + 4 * width <= end; j += 4 * width) take(j, four, 0);
        for (; j + group <= end; j += group) {
            if constexpr (Way::stochastic) {
                std::uint64_t first[R];
                for (std::size_t r = 0; r < R; ++r)
                    first[r] = rounding.first + (i + r) * rounding.row_step + j;
                draw(rounding, first, drawn);
            }
#pragma GCC unroll 4
            for (std::size_t k = 0; k < group / width; ++k) take(j + k * width, one, k);
        }
        if constexpr (!Way::whole) {
            static_assert(!Way::stochastic && !has_copy);
            if (const std::size_t n = end - j; n > 0) {
                const Lanes<Acc> col = load_first<Acc>(col_factor + j, n);
                for (std::size_t r = 0; r < R; ++r) {
                    const Lanes<Acc> x = weighted_u(read_first<Acc>(grad[r], j, n), row[r], col);
                    Lanes<Acc> first_moment;
                    if constexpr (has_momentum) first_moment = read_first<Acc>(m[r], j, n);
                    write_first(param[r], j, n,
                                new_param(read_first<Acc>(param[r], j, n), x, first_moment));
                    if constexpr (has_momentum) write_first(m[r], j, n, first_moment);
                    if constexpr (Way::sums) {
                        // What stands behind the end does not count.
                        const Lanes<Acc> now = read_first<Acc>(param[r], j, n);
                        sum[r] = sum[r] + now * now;
                    }
                }
                j = end;
            }
        }
        if constexpr (Way::sums) add_sums_of_lanes(sum, sum_sq);
    }
}

// Returns, with sums, the sum of squares of what it wrote.
template <class Acc, class Way, class F>
[[gnu::noinline]] SumWords apply_rows(const Step& step) {
    const std::size_t rows = step.blocks.param.rows;
    LaneWords total;
    double sum_sq[kPanelRows];
    for (std::size_t begin = 0; begin < rows; begin += kPanelRows) {
        const std::size_t end = rows - begin < kPanelRows ? rows : begin + kPanelRows;
        std::size_t i = begin;
        // Draws are long chains: several at once, however rows are walked.
        if (Way::stochastic || step.blocks.param.walk == Walk::side_by_side)
            for (; i + 4 <= end; i += 4)
                apply_some_rows<Acc, Way, F, 4>(step, i, sum_sq + (i - begin));
        if constexpr (!Way::stochastic)
            for (; i < end; ++i) apply_some_rows<Acc, Way, F, 1>(step, i, sum_sq + (i - begin));
        if constexpr (Way::sums) {
            are_right<Acc, typename F::Param>(step.blocks.param, begin, end, sum_sq);
            add_rows(sum_sq, end - begin, total);
        }
    }
    return total.sum();
}

// The direct form's RMS(u) needs a sweep of its own: sum_ij u[i,j]^2.
template <class Acc>
SumWords sum_u_squares_in(const Block& grad, const Factors& factors) {
    const Acc* const col_factor = static_cast<const Acc*>(factors.col);
    const Root<Acc> root(factors);
    Acc buffer[kChunk];
    SumWords total{0, 0};
    for (std::size_t i = 0; i < grad.rows; ++i) {
        const Lanes<Acc> row = broadcast(static_cast<const Acc*>(factors.row)[i]);
        for (std::size_t begin = 0; begin < grad.cols; begin += kChunk) {
            const std::size_t n = grad.cols - begin < kChunk ? grad.cols - begin : kChunk;
            const Block run = read_block(part_of(grad, i, begin, 1, n), buffer);
            const Acc* const g = numbers_of<const Acc>(run);
            const Acc* const col = col_factor + begin;
            Lanes<Acc> sum = broadcast(Acc(0));
            std::size_t j = 0;
            for (; j + kLanes<Acc> <= n; j += kLanes<Acc>) {
                const Lanes<Acc> u = direct_u(load<Acc>(g + j), row, load<Acc>(col + j), root);
                sum = sum + u * u;
            }
            if (j < n) {
                // Lanes past the end hold 0 over what is added to the root, or 0 / 0.
                const Lanes<Acc> u = direct_u(load_first<Acc>(g + j, n - j), row,
                                              load_first<Acc>(col + j, n - j), root);
                alignas(64) Acc lane[kLanes<Acc>] = {};
                store_first(lane, u, n - j);
                const Lanes<Acc> kept = load<Acc>(lane);
                sum = sum + kept * kept;
            }
            add_to_words(double(sum_lanes(sum)), total.high, total.low);
        }
    }
    return total;
}

SumWords sum_u_squares(const Block& grad, const Factors& factors) {
    return factors.wide ? sum_u_squares_in<double>(grad, factors)
                        : sum_u_squares_in<float>(grad, factors);
}
