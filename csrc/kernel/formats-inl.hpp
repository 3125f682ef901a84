// Where the numbers of each format lie in a row, and how vectors of them are read and written.
//
// The formats have types: float, double, Bfloat16, Float16, Split, and None where there is no
// array. Whatever the format, read(row, j) and write(row, j, x) are for a whole vector of elements
// from the j-th on; read_first and write_first for the first n of one, with zeros behind them.

struct None {};

template <class T>  // what the machine computes with
constexpr bool kIsNative = std::is_same_v<T, float> || std::is_same_v<T, double>;

template <class T>  // what a float is rounded to
constexpr bool kIsRounded = std::is_same_v<T, Bfloat16> || std::is_same_v<T, Float16>;

// Halves count as floats.
template <class T>
using FloatOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr Format kFormat = std::is_same_v<T, float>      ? Format::float32
                           : std::is_same_v<T, double>   ? Format::float64
                           : std::is_same_v<T, Bfloat16> ? Format::bfloat16
                           : std::is_same_v<T, Float16>  ? Format::float16
                           : std::is_same_v<T, Split>    ? Format::split
                                                         : Format::none;

constexpr std::ptrdiff_t item_bytes(Format format) {
    return format == Format::float64 ? 8 : format == Format::float32 ? 4 : 2;
}

// Calls body(the format's type, one of those listed).
template <class First, class... Others, class Body>
ADAFACTOR_INLINE auto with_type(Format format, const Body& body) {
    if constexpr (sizeof...(Others) > 0) {
        if (format != kFormat<First>) return with_type<Others...>(format, body);
    }
    return body(First());
}

template <class T>
struct Row {
    char* data;
    std::ptrdiff_t low;  // as in Block

    template <class U>
    ADAFACTOR_INLINE U* at(std::size_t j) const {
        return reinterpret_cast<U*>(data + j * sizeof(T));
    }
    template <class U>  // of a split number, where its lower half is
    ADAFACTOR_INLINE U* lower(U* upper) const {
        return reinterpret_cast<U*>(reinterpret_cast<std::intptr_t>(upper) + low);
    }
};

template <class T>
ADAFACTOR_INLINE Row<T> row_of(const Block& block, std::size_t i) {
    return {block.data + std::ptrdiff_t(i) * block.stride, block.low};
}

// Rows i to i + R - 1.
template <class T, std::size_t R>
ADAFACTOR_INLINE void rows_of(const Block& block, std::size_t i, Row<T> (&row)[R]) {
    // One by one: GCC would multiply four row numbers in a vector, which takes longer than the row.
    row[0] = row_of<T>(block, i);
    for (std::size_t r = 1; r < R; ++r) row[r] = {row[r - 1].data + block.stride, block.low};
}

// The part of a block from element (i, j) on.
ADAFACTOR_INLINE Block part_of(const Block& block, std::size_t i, std::size_t j, std::size_t rows,
                               std::size_t cols) {
    return {block.data + std::ptrdiff_t(i) * block.stride +
                std::ptrdiff_t(j) * item_bytes(block.format),
            block.stride,
            rows,
            cols,
            block.format,
            block.low};
}

// Of halves, of which load_part(from, part) has the vectors.
template <class T, class LoadPart>
ADAFACTOR_INLINE Lanes<float> widened(const Row<T>& row, std::size_t j, const LoadPart& load_part) {
    const Half* const half = row.template at<const Half>(j);
    Lanes<float> x;
    ADAFACTOR_PARTS {
        if constexpr (std::is_same_v<T, Split>)
            x.part[part] = Split::joined(load_part(half, part), load_part(row.lower(half), part));
        else
            x.part[part] = T::widened(load_part(half, part));
    }
    return x;
}

template <class Acc, class T>
ADAFACTOR_INLINE Lanes<Acc> read_first(const Row<T>& row, std::size_t j, std::size_t n) {
    if constexpr (kIsNative<T>) {
        return load_first<Acc>(row.template at<const T>(j), n);
    } else {
        const auto load_part = [n](const Half* from,
                                   std::size_t part) __attribute__((always_inline)) {
            Halves x;
            load_some(from + part * kWidth, within_part(n, part, kWidth), x);
            return x;
        };
        const Lanes<float> x = widened(row, j, load_part);
        if constexpr (std::is_same_v<Acc, float>) return x;
        float lane[kLanes<float>];
        store(lane, x);
        return load<Acc>(lane);
    }
}

template <class Acc, class T>
ADAFACTOR_INLINE Lanes<Acc> read(const Row<T>& row, std::size_t j) {
    if constexpr (kIsNative<T>)
        return load<Acc>(row.template at<const T>(j));
    else if constexpr (std::is_same_v<Acc, double>)
        return read_first<Acc>(row, j, kLanes<double>);
    else
        return widened(row, j,
                       [](const Half* from, std::size_t part) __attribute__((always_inline)) {
                           return *reinterpret_cast<const HalvesAnywhere*>(from + part * kWidth);
                       });
}

// `random`: the words of each part that halves are rounded by, or null to round to nearest.
template <class T, class StorePart>
ADAFACTOR_INLINE void narrow(const Row<T>& row, std::size_t j, const Lanes<float>& x,
                             const Words* random, const StorePart& store_part) {
    Half* const half = row.template at<Half>(j);
    ADAFACTOR_PARTS {
        const Floats& number = x.part[part];
        if constexpr (std::is_same_v<T, Split>) {
            store_part(half, part, Split::upper_of(number));
            store_part(row.lower(half), part, Split::lower_of(number));
        } else {
            store_part(
                half, part,
                random == nullptr ? T::nearest(number) : T::stochastic(number, random[part]));
        }
    }
}

template <class T, class Acc>
ADAFACTOR_INLINE void write(const Row<T>& row, std::size_t j, const Lanes<Acc>& x,
                            const Words* random = nullptr) {
    if constexpr (kIsNative<T>)
        store(row.template at<T>(j), x);
    else if constexpr (!std::is_same_v<T, None>)
        narrow(row, j, x, random,
               [](Half* to, std::size_t part, const Halves& bits) __attribute__((always_inline)) {
                   *reinterpret_cast<HalvesAnywhere*>(to + part * kWidth) = bits;
               });
}

template <class T, class Acc>
ADAFACTOR_INLINE void write_first(const Row<T>& row, std::size_t j, std::size_t n,
                                  const Lanes<Acc>& x, const Words* random = nullptr) {
    if constexpr (kIsNative<T>)
        store_first(row.template at<T>(j), x, n);
    else if constexpr (!std::is_same_v<T, None>)
        narrow(row, j, x, random,
               [n](Half* to, std::size_t part, const Halves& bits) __attribute__((always_inline)) {
                   store_some(to + part * kWidth, within_part(n, part, kWidth), bits);
               });
}
