// Blocks of any format as blocks of Acc, float or double: where they lie if that is what they are,
// or else in a buffer, from which they are written back. Between halves and doubles numbers go by
// way of floats, and are rounded each time. Acc is no narrower than any of the formats.

// Elements that go through floats at a time.
constexpr std::size_t kFloatsBetween = 256;
static_assert(kFloatsBetween % kDrawn == 0);

// Asks for what comes so many bytes behind element j, while this piece is stepped.
template <class T>
ADAFACTOR_INLINE void prefetch_ahead(const Row<T>& row, std::size_t j,
                                     std::ptrdiff_t bytes = kChunk * sizeof(T)) {
    const char* const next = row.template at<const char>(j) + bytes;
    __builtin_prefetch(next);
    if constexpr (std::is_same_v<T, Split>) __builtin_prefetch(row.lower(next));
}

template <class T, class Acc>
void read_run(const Row<T>& row, std::size_t n, Acc* to) {
    if constexpr (std::is_same_v<Acc, double> && !kIsNative<T>) {
        float floats[kFloatsBetween];
        for (std::size_t j = 0; j < n; j += kFloatsBetween) {
            const std::size_t some = n - j < kFloatsBetween ? n - j : kFloatsBetween;
            read_run(Row<T>{row.template at<char>(j), row.low}, some, floats);
            for (std::size_t k = 0; k < some; ++k) to[j + k] = double(floats[k]);
        }
    } else {
        std::size_t j = 0;
        for (; j + kLanes<Acc> <= n; j += kLanes<Acc>) {
            prefetch_ahead(row, j);
            store(to + j, read<Acc>(row, j));
        }
        if (j < n) store_first(to + j, read_first<Acc>(row, j, n - j), n - j);
    }
}

// Rounds by the random bits of the elements from number `first` on, as in Rounding. Draws are long
// chains: several at once, where the registers hold them.
template <class T>
void write_run_at_random(const Row<T>& row, std::size_t n, const float* from,
                         const Rounding& rounding, std::uint64_t first) {
    constexpr std::size_t width = kLanes<float>, draws = kParts == 1 ? 4 : 1;
    for (std::size_t begin = 0; begin < n; begin += draws * kDrawn) {
        std::uint64_t numbers[draws];
        for (std::size_t d = 0; d < draws; ++d) numbers[d] = first + begin + d * kDrawn;
        Words drawn[draws][kParts], words[kParts];
        draw(rounding, numbers, drawn);
#pragma GCC unroll 1
        for (std::size_t d = 0; d < draws; ++d) {
#pragma GCC unroll 4
            for (std::size_t k = 0; k < kDrawn / width; ++k) {
                const std::size_t j = begin + d * kDrawn + k * width;
                if (j >= n) return;
                prefetch_ahead(row, j);
                random_words(drawn[d], k, words);
                if (n - j >= width)
                    write(row, j, load<float>(from + j), words);
                else
                    write_first(row, j, n - j, load_first<float>(from + j, n - j), words);
            }
        }
    }
}

template <class T, class Acc>
void write_run(const Row<T>& row, std::size_t n, const Acc* from, const Rounding& rounding,
               std::uint64_t first) {
    if constexpr (std::is_same_v<Acc, double> && !kIsNative<T>) {
        float floats[kFloatsBetween];
        for (std::size_t j = 0; j < n; j += kFloatsBetween) {
            const std::size_t some = n - j < kFloatsBetween ? n - j : kFloatsBetween;
            for (std::size_t k = 0; k < some; ++k) floats[k] = float(from[j + k]);
            write_run(Row<T>{row.template at<char>(j), row.low}, some, floats, rounding, first + j);
        }
    } else {
        if constexpr (kIsRounded<T>) {
            if (rounding.stochastic) return write_run_at_random(row, n, from, rounding, first);
        }
        std::size_t j = 0;
        for (; j + kLanes<Acc> <= n; j += kLanes<Acc>) {
            prefetch_ahead(row, j);
            write(row, j, load<Acc>(from + j));
        }
        if (j < n) write_first(row, j, n - j, load_first<Acc>(from + j, n - j));
    }
}

// All rows of a block into a buffer, one behind the other, and out of it.
template <class Acc>
[[gnu::noinline]] void copy_block(const Block& from, Acc* to) {
    with_float_type(from.format, [&](auto type) __attribute__((always_inline)) {
        using T = decltype(type);
        for (std::size_t i = 0; i < from.rows; ++i)
            read_run(row_of<T>(from, i), from.cols, to + i * from.cols);
    });
}

template <class Acc>
[[gnu::noinline]] void copy_block(const Acc* from, std::ptrdiff_t stride, const Block& to,
                                  const Rounding& rounding) {
    with_float_type(to.format, [&](auto type) __attribute__((always_inline)) {
        using T = decltype(type);
        const auto* const data = reinterpret_cast<const char*>(from);
        for (std::size_t i = 0; i < to.rows; ++i)
            write_run(row_of<T>(to, i), to.cols,
                      reinterpret_cast<const Acc*>(data + std::ptrdiff_t(i) * stride), rounding,
                      rounding.first + i * rounding.row_step);
    });
}

// The block itself if it is of Acc's own format or of none, or else its numbers in the buffer.
template <class Acc>
ADAFACTOR_INLINE Block read_block(const Block& block, Acc* buffer) {
    if (block.format == kFormat<Acc> || block.format == Format::none) return block;
    copy_block(block, buffer);
    return {reinterpret_cast<char*>(buffer),
            std::ptrdiff_t(block.cols * sizeof(Acc)),
            block.rows,
            block.cols,
            kFormat<Acc>,
            0,
            block.walk};
}

// Writes the numbers of `from`, as read_block returned it, unless they lie there already or `to` is
// of no format.
template <class Acc>
ADAFACTOR_INLINE void write_block(const Block& from, const Block& to,
                                  const Rounding& rounding = Rounding()) {
    if (from.data == to.data || to.format == Format::none) return;
    copy_block(reinterpret_cast<const Acc*>(from.data), from.stride, to, rounding);
}

// The numbers of a block of one row.
template <class Acc>
ADAFACTOR_INLINE Acc* numbers_of(const Block& run) {
    return reinterpret_cast<Acc*>(run.data);
}
