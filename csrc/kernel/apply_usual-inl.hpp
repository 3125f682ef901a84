// apply: which combinations of formats its loop is made for, and the way of all others.

// Arrays that are all of Acc's own format, in both forms: as they lie, or in buffers.
template <class Acc, bool separable>
SumWords apply_native_as(const Step& step, bool sums_param) {
    return with_kind(step.descent, step.blocks.m, [&](auto kind) __attribute__((always_inline)) {
        constexpr bool has_momentum = kind.value == DescentKind::with_momentum;
        using F = Formats<Acc, Acc, None, std::conditional_t<has_momentum, Acc, None>>;
        if constexpr (kind.value == DescentKind::plain) {
            if (sums_param)
                return apply_rows<Acc, Way<separable, kind.value, false, true>, F>(step);
        }
        apply_rows<Acc, Way<separable, kind.value>, F>(step);
        return sums_param ? sum_squares(step.blocks.param) : SumWords{0, 0};
    });
}

template <class Acc>
SumWords apply_native(const Step& step, bool sums_param) {
    return step.factors.separable ? apply_native_as<Acc, true>(step, sums_param)
                                  : apply_native_as<Acc, false>(step, sums_param);
}

template <class Acc>
bool are_native(const StepBlocks& blocks) {
    constexpr Format own = kFormat<Acc>;
    return blocks.param.format == own && blocks.grad.format == own &&
           (blocks.m.format == own || blocks.m.format == Format::none) &&
           blocks.copy.format == Format::none;
}

// Any arrays, piece by piece: what is not of Acc's own format is stepped in a buffer. Factors are
// Acc's. Pieces are long rather than tall, as memory is read ahead along rows.
template <class Acc>
void apply_buffered(const Step& step) {
    static_assert(kChunk % kDrawn == 0);
    alignas(64) Acc param_buffer[kChunk], m_buffer[kChunk], grad_buffer[kChunk];
    const std::size_t rows = step.blocks.param.rows, cols = step.blocks.param.cols;
    const std::size_t cols_at_once = cols < kChunk ? cols : kChunk;
    const std::size_t rows_at_once = kChunk / cols_at_once;
    for (std::size_t i = 0; i < rows; i += rows_at_once) {
        const std::size_t n_rows = rows - i < rows_at_once ? rows - i : rows_at_once;
        for (std::size_t j = 0; j < cols; j += cols_at_once) {
            const std::size_t n_cols = cols - j < cols_at_once ? cols - j : cols_at_once;
            with_part<Acc>(step, i, j, n_rows, n_cols, [&](const Step& piece) {
                const StepBlocks& blocks = piece.blocks;
                const StepBlocks native{read_block(blocks.param, param_buffer),
                                        read_block(blocks.m, m_buffer),
                                        read_block(blocks.grad, grad_buffer), Block()};
                apply_native<Acc>({native, piece.factors, piece.descent, piece.rounding}, false);
                write_block<Acc>(native.param, blocks.param, piece.rounding);
                write_block<Acc>(native.m, blocks.m, for_moment(piece.rounding));
                write_block<Acc>(native.param, blocks.copy, piece.rounding);
            });
        }
    }
}

// Whole groups of columns, and of rows if they are needed, as F says; what is left over as any
// arrays.
template <class Acc, bool separable, DescentKind kind, bool stochastic, class F>
void apply_as(const Step& step) {
    const std::size_t rows = step.blocks.param.rows, cols = step.blocks.param.cols;
    const std::size_t whole_rows = stochastic ? rows / 4 * 4 : rows,
                      whole_cols = cols - cols % group_of<Acc>(stochastic);
    if (whole_rows > 0 && whole_cols > 0)
        with_part<Acc>(step, 0, 0, whole_rows, whole_cols,
                       apply_rows<Acc, Way<separable, kind, stochastic, false, true>, F>);
    if (whole_rows > 0 && whole_cols < cols)
        with_part<Acc>(step, 0, whole_cols, whole_rows, cols - whole_cols, apply_buffered<Acc>);
    if (whole_rows < rows)
        with_part<Acc>(step, whole_rows, 0, rows - whole_rows, cols, apply_buffered<Acc>);
}

// Whether the blocks have these formats; if so, applies to them. A copy by itself is rounded to the
// nearest.
template <class Acc, bool separable, class F>
ADAFACTOR_INLINE bool apply_if(const Step& step) {
    using Param = typename F::Param;
    using Copy = typename F::Copy;
    using M = typename F::M;
    const StepBlocks& blocks = step.blocks;
    if (blocks.param.format != kFormat<Param> || blocks.m.format != kFormat<M> ||
        blocks.grad.format != kFormat<typename F::Grad> || blocks.copy.format != kFormat<Copy>)
        return false;
    const bool at_random = step.rounding.stochastic && (kIsRounded<Param> || kIsRounded<Copy>);
    if (at_random && !kIsRounded<Param>) return false;
    if (step.rounding.stochastic && kIsRounded<M>) return false;  // m has bits of its own
    with_kind(step.descent, blocks.m, [&](auto kind) __attribute__((always_inline)) {
        constexpr bool has_momentum = kind.value == DescentKind::with_momentum;
        if constexpr (has_momentum != std::is_same_v<M, None>) {
            if constexpr (kIsRounded<Param> && !kIsRounded<M>) {
                if (at_random) return apply_as<Acc, separable, kind.value, true, F>(step);
            }
            apply_as<Acc, separable, kind.value, false, F>(step);
        }
    });
    return true;
}

// Steps of most arrays that are not native: formats of param, grad, copy and m.
template <bool separable>
bool apply_mixed(const Step& step) {
    return apply_if<double, separable, Formats<double, float>>(step) ||
           apply_if<double, separable, Formats<float, double>>(step) ||
           apply_if<double, separable, Formats<double, float, None, double>>(step) ||
           apply_if<double, separable, Formats<float, double, None, float>>(step);
}

#if defined(__AVX2__) || !defined(__SSE2__)

bool apply_halves(const Step& step) {
    constexpr bool separable = true;
    return apply_if<float, separable, Formats<Bfloat16, Bfloat16>>(step) ||
           apply_if<float, separable, Formats<Float16, Float16>>(step) ||
           apply_if<float, separable, Formats<float, Bfloat16>>(step) ||
           apply_if<float, separable, Formats<float, Float16>>(step) ||
           apply_if<float, separable, Formats<float, Bfloat16, Bfloat16>>(step) ||
           apply_if<float, separable, Formats<float, Float16, Float16>>(step) ||
           apply_if<float, separable, Formats<float, float, Bfloat16>>(step) ||
           apply_if<float, separable, Formats<float, float, Float16>>(step) ||
           apply_if<float, separable, Formats<Split, Bfloat16>>(step) ||
           apply_if<float, separable, Formats<Bfloat16, float>>(step) ||
           apply_if<float, separable, Formats<Bfloat16, Bfloat16, None, float>>(step) ||
           apply_if<float, separable, Formats<Bfloat16, Bfloat16, None, Bfloat16>>(step) ||
           apply_if<float, separable, Formats<float, Bfloat16, Bfloat16, float>>(step) ||
           apply_if<float, separable, Formats<float, float, None, Bfloat16>>(step);
}

// The direct form, which few conventions ask for, has fewer combinations.
bool apply_halves_directly(const Step& step) {
    return apply_if<float, false, Formats<Bfloat16, Bfloat16>>(step) ||
           apply_if<float, false, Formats<Bfloat16, Bfloat16, None, float>>(step) ||
           apply_if<float, false, Formats<Bfloat16, Bfloat16, None, Bfloat16>>(step);
}

// Whether the step was one of those.
bool apply_usual(const Step& step) {
    const bool separable = step.factors.separable;
    if (step.factors.wide) return separable ? apply_mixed<true>(step) : apply_mixed<false>(step);
    return separable ? apply_halves(step) : apply_halves_directly(step);
}

#else

// On processors that nobody has by now, though everybody compiles for them, no step is.
bool apply_usual(const Step&) { return false; }

#endif

SumWords apply(const StepBlocks& blocks, const Factors& factors, const Descent& descent,
               const Rounding& rounding, bool sums_param) {
    const Step step{blocks, factors, descent, rounding};
    if (!factors.wide && are_native<float>(blocks)) return apply_native<float>(step, sums_param);
    if (factors.wide && are_native<double>(blocks)) return apply_native<double>(step, sums_param);
    if (!apply_usual(step))
        factors.wide ? apply_buffered<double>(step) : apply_buffered<float>(step);
    return sums_param ? sum_squares(blocks.param) : SumWords{0, 0};
}
