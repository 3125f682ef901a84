// apply: which combinations of formats the loop is made for, and what becomes of all others.

// Arrays that are all of Acc's own format, for every form and kind: by themselves, and in buffers
// for the arrays of any formats.
template <class Acc, bool separable>
double apply_native_as(const StepBlocks& blocks, const Factors& factors, const Descent& descent,
                       bool sums_param) {
    return with_kind(descent, blocks.m, [&](auto kind) __attribute__((always_inline)) {
        constexpr bool has_momentum = kind.value == DescentKind::with_momentum;
        using M = std::conditional_t<has_momentum, Acc, None>;
        using F = Formats<Acc, Acc, None, M>;
        if constexpr (kind.value == DescentKind::plain) {
            if (sums_param)
                return apply_rows<Acc, Way<separable, kind.value, false, true>, F>(
                    blocks, factors, descent, Rounding());
        }
        apply_rows<Acc, Way<separable, kind.value>, F>(blocks, factors, descent, Rounding());
        return sums_param ? sum_squares(blocks.param) : 0;
    });
}

template <class Acc>
double apply_native(const StepBlocks& blocks, const Factors& factors, const Descent& descent,
                    bool sums_param) {
    return factors.separable ? apply_native_as<Acc, true>(blocks, factors, descent, sums_param)
                             : apply_native_as<Acc, false>(blocks, factors, descent, sums_param);
}

template <class Acc>
bool are_native(const StepBlocks& blocks) {
    constexpr Format own = kFormat<Acc>;
    return blocks.param.format == own && blocks.grad.format == own &&
           (blocks.m.format == own || blocks.m.format == Format::none) &&
           blocks.copy.format == Format::none;
}

// Whether the blocks have these formats; if so, applies to them, separably and in Acc. What is
// written to the copy alone is rounded to the nearest.
template <class Acc, class F>
ADAFACTOR_INLINE bool apply_if(const StepBlocks& blocks, const Factors& factors,
                               const Descent& descent, const Rounding& rounding) {
    using Param = typename F::Param;
    using Copy = typename F::Copy;
    using M = typename F::M;
    if (blocks.param.format != kFormat<Param> || blocks.m.format != kFormat<M> ||
        blocks.grad.format != kFormat<typename F::Grad> || blocks.copy.format != kFormat<Copy>)
        return false;
    const bool at_random = rounding.stochastic && (kIsRounded<Param> || kIsRounded<Copy>);
    if (at_random && !kIsRounded<Param>) return false;
    if (rounding.stochastic && kIsRounded<M>) return false;  // m has bits of its own
    with_kind(descent, blocks.m, [&](auto kind) __attribute__((always_inline)) {
        constexpr bool has_momentum = kind.value == DescentKind::with_momentum;
        if constexpr (has_momentum != std::is_same_v<M, None>) {
            if constexpr (kIsRounded<Param>) {
                if (at_random) {
                    apply_rows<Acc, Way<true, kind.value, true>, F>(blocks, factors, descent,
                                                                    rounding);
                    return;
                }
            }
            apply_rows<Acc, Way<true, kind.value>, F>(blocks, factors, descent, rounding);
        }
    });
    return true;
}

template <class Acc, class... F>
ADAFACTOR_INLINE bool apply_if_any(const StepBlocks& blocks, const Factors& factors,
                                   const Descent& descent, const Rounding& rounding) {
    return (apply_if<Acc, F>(blocks, factors, descent, rounding) || ...);
}

// The combinations of most steps that are not native: param, grad, copy and m. Returns whether the
// blocks are one of them.
bool apply_usual([[maybe_unused]] const StepBlocks& blocks, [[maybe_unused]] const Factors& factors,
                 [[maybe_unused]] const Descent& descent,
                 [[maybe_unused]] const Rounding& rounding) {
#if defined(__AVX2__) || !defined(__SSE2__)
    if (!factors.separable) return false;
    if (factors.wide)
        return apply_if_any<double,                  //
                            Formats<double, float>,  //
                            Formats<float, double>>(blocks, factors, descent, rounding);
    return apply_if_any<float,                                     //
                        Formats<Bfloat16, Bfloat16>,               //
                        Formats<Float16, Float16>,                 //
                        Formats<float, Bfloat16>,                  //
                        Formats<float, Float16>,                   //
                        Formats<float, Bfloat16, Bfloat16>,        //
                        Formats<float, Float16, Float16>,          //
                        Formats<float, float, Bfloat16>,           //
                        Formats<float, float, Float16>,            //
                        Formats<Split, Bfloat16>,                  //
                        Formats<Bfloat16, float>,                  //
                        Formats<Bfloat16, Bfloat16, None, float>,  //
                        Formats<Bfloat16, Bfloat16, None, Bfloat16>>(blocks, factors, descent,
                                                                     rounding);
#else
    return false;  // of a processor that nobody has by now, a minute of everybody's compilation
#endif
}

// Any combination, by pieces of blocks: what is not of Acc's own format is stepped in a buffer.
constexpr std::size_t kBufferedCols = 256;
static_assert(kBufferedCols % kDrawn == 0 && kBuffered >= 4 * kBufferedCols);

template <class Acc>
void apply_buffered(const StepBlocks& blocks, const Factors& factors, const Descent& descent,
                    const Rounding& rounding) {
    alignas(64) Acc param_buffer[kBuffered], m_buffer[kBuffered], grad_buffer[kBuffered];
    const std::size_t rows = blocks.param.rows, cols = blocks.param.cols;
    const std::size_t cols_at_once = cols < kBufferedCols ? cols : kBufferedCols;
    const std::size_t rows_at_once = kBuffered / cols_at_once / 4 * 4;
    for (std::size_t i = 0; i < rows; i += rows_at_once) {
        const std::size_t n_rows = rows - i < rows_at_once ? rows - i : rows_at_once;
        for (std::size_t j = 0; j < cols; j += cols_at_once) {
            const std::size_t n_cols = cols - j < cols_at_once ? cols - j : cols_at_once;
            const auto piece_of = [&](const Block& block) {
                return part_of(block, i, j, n_rows, n_cols);
            };
            const Block param = piece_of(blocks.param), m = piece_of(blocks.m);
            const StepBlocks native{read_block(param, param_buffer), read_block(m, m_buffer),
                                    read_block(piece_of(blocks.grad), grad_buffer), Block()};
            Factors here = factors;
            here.row = static_cast<const Acc*>(factors.row) + i;
            here.col = static_cast<const Acc*>(factors.col) + j;
            apply_native<Acc>(native, here, descent, false);
            Rounding numbered = rounding;
            numbered.first += i * rounding.row_step + j;
            write_block<Acc>(native.param, param, numbered);
            write_block<Acc>(native.m, m, for_moment(numbered));
            write_block<Acc>(native.param, piece_of(blocks.copy), numbered);
        }
    }
}

double apply(const StepBlocks& blocks, const Factors& factors, const Descent& descent,
             const Rounding& rounding, bool sums_param) {
    if (!factors.wide && are_native<float>(blocks))
        return apply_native<float>(blocks, factors, descent, sums_param);
    if (factors.wide && are_native<double>(blocks))
        return apply_native<double>(blocks, factors, descent, sums_param);
    if (!apply_usual(blocks, factors, descent, rounding))
        (factors.wide ? apply_buffered<double> : apply_buffered<float>)(blocks, factors, descent,
                                                                        rounding);
    return sums_param ? sum_squares(blocks.param) : 0;
}
